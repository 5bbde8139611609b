//! AuditService: checks what is to be audited and hands it to `jobs`; answers with reports and policies.
//!
//! Audits nothing itself, but for uploaded scores, which need no model: those go through `audit_scores`.

use std::sync::Arc;

use prost::Message as _;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use super::audit_models;
use super::audit_policies::{policy, policy_out, summary_out};
use super::audit_report::{comparison_out, report_out};
use super::audit_scores;
use super::context::Context;
use super::fields::{checked, name, next_page, page, request_id, request_key};
use super::jobs::{in_jobs, job_out};
use super::page::PageTokens;
use super::pb;
use super::services::blocking;
use super::status;
use super::upload::Memory;
use super::violations::Violations;
use crate::audit::{compare, render};
use crate::jobs::Jobs;
use crate::reports::{Reports, ReportsError};

/// Answers AuditService.
#[derive(Debug)]
pub(super) struct Audits {
    pub(super) jobs: Jobs,
    pub(super) reports: Arc<Reports>,
    pub(super) pages: PageTokens,
    /// Tokens of the longest sequence of the base model.
    pub(super) context_length: usize,
    /// Most rows of uploaded scores.
    pub(super) max_rows: u64,
    /// Memory of uploaded scores, all calls together.
    pub(super) upload_memory: Arc<Semaphore>,
    /// Its bytes.
    pub(super) max_upload_bytes: u64,
}

impl Audits {
    /// Runs `work` on the reports, off the async threads and to its end.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        context: &Context,
        work: impl FnOnce(&Reports) -> Result<T, ReportsError> + Send + 'static,
    ) -> Result<T, Status> {
        let reports = Arc::clone(&self.reports);
        blocking(context, move || work(&reports)).await?.map_err(|error| status::reports(&error, context))
    }
}

/// Checks the id of a report or the name of an audit.
pub(super) fn reference(v: &mut Violations, field: &str, text: &str) {
    let sound = (1..=64).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_graphic());
    v.require(field, sound, "must be the id of a report or the name of an audit");
}

#[tonic::async_trait]
impl pb::audit_service_server::AuditService for Audits {
    async fn create_audit(&self, request: Request<pb::CreateAuditRequest>) -> Result<Response<pb::Job>, Status> {
        let context = Context::of(&request);
        let mut wire = request.into_inner();
        let mut v = Violations::default();
        let id = std::mem::take(&mut wire.request_id);
        request_id(&mut v, "request_id", &id);
        let request = request_key("CreateAudit", id, &wire.encode_to_vec());
        let wanted = audit_models::wanted(&mut v, wire, self.context_length);
        let wanted = checked(v, wanted)?;
        let job = in_jobs(&self.jobs, &context, move |jobs| jobs.create_audit(wanted, request.as_ref())).await?;
        Ok(Response::new(job_out(job)))
    }

    async fn estimate_audit(
        &self,
        request: Request<pb::EstimateAuditRequest>,
    ) -> Result<Response<pb::EstimateAuditResponse>, Status> {
        let context = Context::of(&request);
        let mut v = Violations::default();
        let audit = request.into_inner().audit.unwrap_or_default();
        let wanted = audit_models::wanted(&mut v, audit, self.context_length);
        let wanted = checked(v, wanted)?;
        let estimate = in_jobs(&self.jobs, &context, move |jobs| jobs.estimate_audit(&wanted)).await?;
        Ok(Response::new(pb::EstimateAuditResponse {
            trainings: estimate.trainings,
            steps: estimate.steps,
            items: estimate.items,
            training_seconds: estimate.training_seconds,
            scoring_seconds: estimate.scoring_seconds,
            score_bytes: estimate.score_bytes,
            memory_bytes: estimate.memory_bytes,
            disk_bytes: estimate.disk_bytes,
        }))
    }

    async fn audit_scores(
        &self,
        request: Request<Streaming<pb::AuditScoresRequest>>,
    ) -> Result<Response<pb::AuditReport>, Status> {
        let context = Context::of(&request);
        let memory = Memory::new(&self.upload_memory, self.max_upload_bytes);
        let received = audit_scores::receive(request.into_inner(), self.max_rows, memory).await?;
        let (id, report) = self.assess(&context, received).await?;
        Ok(Response::new(report_out(id, report)))
    }

    async fn get_audit_report(
        &self,
        request: Request<pb::GetAuditReportRequest>,
    ) -> Result<Response<pb::GetAuditReportResponse>, Status> {
        let context = Context::of(&request);
        let wire = request.into_inner();
        let mut v = Violations::default();
        reference(&mut v, "name", &wire.name);
        let format = pb::ReportFormat::try_from(wire.format).ok();
        v.require("format", format.is_some(), "is not a known value");
        let format = checked(v, format)?;
        let (summary, report, file) = self
            .ask(&context, move |reports| {
                let (summary, report) = reports.get(&wire.name)?;
                let file = match format {
                    pb::ReportFormat::Unspecified => Vec::new(),
                    pb::ReportFormat::Json => report.canonical().map_err(crate::store::unwritable)?,
                    pb::ReportFormat::Html => render::html(&report).into_bytes(),
                    pb::ReportFormat::Markdown => render::markdown(&report).into_bytes(),
                    pb::ReportFormat::Csv => render::csv(&report).into_bytes(),
                };
                Ok((summary, report, file))
            })
            .await?;
        let media_type = match format {
            pb::ReportFormat::Unspecified => "",
            pb::ReportFormat::Json => "application/json",
            pb::ReportFormat::Html => "text/html; charset=utf-8",
            pb::ReportFormat::Markdown => "text/markdown; charset=utf-8",
            pb::ReportFormat::Csv => "text/csv; charset=utf-8",
        };
        Ok(Response::new(pb::GetAuditReportResponse {
            report: Some(report_out(summary.id.clone(), report)),
            summary: Some(summary_out(summary)),
            file,
            media_type: media_type.to_owned(),
        }))
    }

    async fn list_audit_reports(
        &self,
        request: Request<pb::ListAuditReportsRequest>,
    ) -> Result<Response<pb::ListAuditReportsResponse>, Status> {
        let context = Context::of(&request);
        let wire = request.into_inner();
        let mut v = Violations::default();
        let filter = |v: &mut Violations, field: &str, text: &str| {
            (!text.is_empty()).then(|| name(v, field, text)).flatten().map(|name| name.to_string())
        };
        let adapter = filter(&mut v, "adapter", &wire.adapter);
        let named = filter(&mut v, "name", &wire.name);
        checked(v, Some(()))?;
        let method = format!("ListAuditReports {} {}", wire.adapter, wire.name);
        let (size, before) = page(&self.pages, &method, wire.page_size, &wire.page_token)?;
        // Our own token: what is in it is a number.
        let before = before.and_then(|place| place.parse().ok());
        let mut reports = self
            .ask(&context, move |reports| reports.list(before, adapter.as_deref(), named.as_deref(), size + 1))
            .await?;
        let more = reports.len() > size;
        reports.truncate(size);
        let last = reports.last().filter(|_| more);
        let next_page_token = last.map_or_else(String::new, |(place, _)| self.pages.seal(&method, &place.to_string()));
        let reports = reports.into_iter().map(|(_, summary)| summary_out(summary)).collect();
        Ok(Response::new(pb::ListAuditReportsResponse { reports, next_page_token }))
    }

    async fn compare_audits(
        &self,
        request: Request<pb::CompareAuditsRequest>,
    ) -> Result<Response<pb::CompareAuditsResponse>, Status> {
        let context = Context::of(&request);
        let wire = request.into_inner();
        let mut v = Violations::default();
        reference(&mut v, "before", &wire.before);
        reference(&mut v, "after", &wire.after);
        checked(v, Some(()))?;
        let comparison = self
            .ask(&context, move |reports| {
                let ((_, before), (_, after)) = (reports.get(&wire.before)?, reports.get(&wire.after)?);
                Ok(compare::compare(&before, &after))
            })
            .await?;
        Ok(Response::new(comparison_out(comparison)))
    }

    async fn create_audit_policy(
        &self,
        request: Request<pb::CreateAuditPolicyRequest>,
    ) -> Result<Response<pb::AuditPolicy>, Status> {
        let context = Context::of(&request);
        let mut wire = request.into_inner();
        let mut v = Violations::default();
        let id = std::mem::take(&mut wire.request_id);
        request_id(&mut v, "request_id", &id);
        let request = request_key("CreateAuditPolicy", id, &wire.encode_to_vec());
        let policy = policy(&mut v, wire.policy);
        let (policy, like) = checked(v, policy)?;
        let stored =
            self.ask(&context, move |reports| reports.create_policy(policy, like.as_deref(), request.as_ref())).await?;
        Ok(Response::new(policy_out(stored)))
    }

    async fn get_audit_policy(
        &self,
        request: Request<pb::GetAuditPolicyRequest>,
    ) -> Result<Response<pb::AuditPolicy>, Status> {
        let context = Context::of(&request);
        let mut v = Violations::default();
        let name = name(&mut v, "name", &request.get_ref().name);
        let name = checked(v, name)?;
        let stored = self.ask(&context, move |reports| reports.policy(name.as_str())).await?;
        Ok(Response::new(policy_out(stored)))
    }

    async fn list_audit_policies(
        &self,
        request: Request<pb::ListAuditPoliciesRequest>,
    ) -> Result<Response<pb::ListAuditPoliciesResponse>, Status> {
        let context = Context::of(&request);
        let wire = request.into_inner();
        let method = "ListAuditPolicies";
        let (size, after) = page(&self.pages, method, wire.page_size, &wire.page_token)?;
        let mut policies = self.ask(&context, move |reports| reports.policies(after.as_deref(), size + 1)).await?;
        let next_page_token = next_page(&self.pages, method, &mut policies, size, |stored| &stored.policy.name);
        let policies = policies.into_iter().map(policy_out).collect();
        Ok(Response::new(pb::ListAuditPoliciesResponse { policies, next_page_token }))
    }

    async fn delete_audit_policy(
        &self,
        request: Request<pb::DeleteAuditPolicyRequest>,
    ) -> Result<Response<()>, Status> {
        let context = Context::of(&request);
        let mut wire = request.into_inner();
        let mut v = Violations::default();
        let id = std::mem::take(&mut wire.request_id);
        request_id(&mut v, "request_id", &id);
        let request = request_key("DeleteAuditPolicy", id, &wire.encode_to_vec());
        let name = name(&mut v, "name", &wire.name);
        let name = checked(v, name)?;
        self.ask(&context, move |reports| reports.delete_policy(name.as_str(), request.as_ref())).await?;
        Ok(Response::new(()))
    }
}
