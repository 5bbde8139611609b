//! Policies, and aliases that demand one: nothing passes without evidence.

use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::*;
use crate::client::{refused, violations};

fn rule(measure: &str, scope: FigureScope) -> pb::AuditRule {
    pb::AuditRule { measure: measure.into(), scope: scope.into(), allow_low_support: true, ..Default::default() }
}

async fn make(client: &Client, name: &str, rules: Vec<pb::AuditRule>) -> Result<pb::AuditPolicy, Status> {
    let policy = pb::AuditPolicy { name: name.into(), rules, ..Default::default() };
    let request = pb::CreateAuditPolicyRequest { policy: Some(policy), ..Default::default() };
    Ok(audits(client).create_audit_policy(request).await?.into_inner())
}

async fn point(client: &Client, adapter: &str, policy: Option<&str>) -> Result<pb::Alias, Status> {
    let policy = policy.map(str::to_owned);
    let request = pb::SetAliasRequest { name: "prod".into(), adapter: adapter.into(), policy, ..Default::default() };
    Ok(client.adapters.clone().set_alias(request).await?.into_inner())
}

#[tokio::test]
async fn an_alias_with_a_policy_moves_only_to_what_passes() {
    let server = client::start().await;
    let client = &server.client;
    upload(client, "rows", &rows(), declaration()).await;
    client.publish("poet", "lora_qv").await;
    client.publish("clerk", "all_linear").await;
    // Every gap is at most 1; none is at most −1.
    make(client, "lenient", vec![pb::AuditRule { at_most: Some(1.0), ..rule("accuracy", FigureScope::Difference) }])
        .await
        .unwrap();
    make(client, "strict", vec![pb::AuditRule { at_most: Some(-1.0), ..rule("accuracy", FigureScope::Difference) }])
        .await
        .unwrap();
    let status = refused(point(client, "poet", Some("lenient")).await, Code::FailedPrecondition, "AUDIT_GATE_FAILED");
    assert!(status.message().contains("no report"), "{status:?}");
    refused(point(client, "poet", Some("nothing")).await, Code::NotFound, "POLICY_NOT_FOUND");

    let job = create(client, request("gate", vec![base(), adapter("poet")], settings())).await.unwrap();
    let report = reported(client, &job.id).await;
    let alias = point(client, "poet", Some("lenient")).await.unwrap();
    assert_eq!(alias.policy, "lenient");
    // What the alias demands stays, whoever moves it.
    refused(client.set_alias("prod", "clerk").await, Code::FailedPrecondition, "AUDIT_GATE_FAILED");
    let status = refused(point(client, "poet", Some("strict")).await, Code::FailedPrecondition, "AUDIT_GATE_FAILED");
    assert_eq!(status.get_details_error_info().unwrap().metadata["report"], report.id);
    let failures = status.get_details_precondition_failure().unwrap().violations;
    assert!(failures.iter().any(|failure| failure.description.contains("accuracy")), "{failures:?}");
    let delete = async |name: &str| {
        let request = pb::DeleteAuditPolicyRequest { name: name.into(), ..Default::default() };
        audits(client).delete_audit_policy(request).await
    };
    refused(delete("lenient").await, Code::FailedPrecondition, "POLICY_IN_USE");
    delete("strict").await.unwrap();
    refused(delete("strict").await, Code::NotFound, "POLICY_NOT_FOUND");
    assert_eq!(point(client, "clerk", Some("")).await.unwrap().policy, "");
    delete("lenient").await.unwrap();
}

#[tokio::test]
async fn policies_are_kept_listed_and_checked() {
    let server = client::start().await;
    let client = &server.client;
    for name in ["b", "a", "c"] {
        let rules = vec![pb::AuditRule { at_least: Some(0.8), ..rule("accuracy", FigureScope::Group) }];
        let made = make(client, name, rules).await.unwrap();
        let request = pb::GetAuditPolicyRequest { name: name.into() };
        assert_eq!(audits(client).get_audit_policy(request).await.unwrap().into_inner(), made);
    }
    let request = pb::ListAuditPoliciesRequest { page_size: 2, ..Default::default() };
    let page = audits(client).list_audit_policies(request).await.unwrap().into_inner();
    assert_eq!(page.policies.iter().map(|policy| policy.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let request = pb::ListAuditPoliciesRequest { page_size: 2, page_token: page.next_page_token };
    assert_eq!(audits(client).list_audit_policies(request).await.unwrap().into_inner().policies.len(), 1);
    let again = make(client, "a", vec![pb::AuditRule { at_least: Some(0.8), ..rule("accuracy", FigureScope::Group) }]);
    refused(again.await, Code::AlreadyExists, "POLICY_EXISTS");

    let faulty = vec![
        pb::AuditRule { at_most: Some(f64::NAN), ..rule("accuracy", FigureScope::Group) },
        pb::AuditRule { at_most: Some(0.1), ..rule("nothing", FigureScope::Unspecified) },
        rule("accuracy", FigureScope::Group),
    ];
    let status = refused(make(client, "A", faulty).await, Code::InvalidArgument, "INVALID_FIELD");
    let fields = [
        "policy.name",
        "policy.rules[0].at_most",
        "policy.rules[1].measure",
        "policy.rules[1].scope",
        "policy.rules[2].at_most",
    ];
    assert_eq!(violations(&status), fields);
}
