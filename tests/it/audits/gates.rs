//! Policies, and aliases that demand one: nothing passes without evidence.

use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::*;
use crate::client::{refused, violations};

fn rule(measure: &str, scope: FigureScope) -> pb::AuditRule {
    pb::AuditRule { measure: measure.into(), scope: scope.into(), allow_low_support: true, ..Default::default() }
}

/// The gap of accuracy, which is at most 1.
fn gap(at_most: f64) -> pb::AuditRule {
    pb::AuditRule { at_most: Some(at_most), ..rule("accuracy", FigureScope::Difference) }
}

/// A policy for audits that are small enough for a test.
async fn make(client: &Client, name: &str, rules: Vec<pb::AuditRule>) -> Result<pb::AuditPolicy, Status> {
    create_policy(client, pb::AuditPolicy { name: name.into(), rules, min_resamples: Some(200), ..Default::default() })
        .await
}

async fn create_policy(client: &Client, policy: pb::AuditPolicy) -> Result<pb::AuditPolicy, Status> {
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
    make(client, "lenient", vec![gap(1.0)]).await.unwrap();
    make(client, "strict", vec![gap(-1.0)]).await.unwrap();
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

/// The series of a metric with their values.
fn series(scrape: &client::Scrape, name: &str) -> Vec<(String, f64)> {
    let own = scrape.0.iter().filter_map(|(series, value)| Some((series.strip_prefix(name)?.to_owned(), *value)));
    own.filter(|(labels, _)| labels.starts_with('{')).collect()
}

#[tokio::test]
async fn the_gate_of_an_alias_is_a_metric_that_follows_reports_and_survives_a_restart() {
    let mut server = client::start().await;
    upload(&server.client, "rows", &rows(), declaration()).await;
    server.client.publish("poet", "lora_qv").await;
    make(&server.client, "lenient", vec![gap(1.0)]).await.unwrap();
    let gate = async |client: &Client| series(&client.metrics().await, "evenkeel_audit_gate");
    let is = |value: f64| vec![(r#"{adapter="poet",alias="prod",policy="lenient"}"#.to_owned(), value)];
    let checks = async |client: &Client, outcome: &str| {
        client.metrics().await.sum("evenkeel_audit_gate_checks_total", &[&format!("outcome=\"{outcome}\"")])
    };
    let audit = async |client: &Client, resamples: u32| {
        let mut settings = settings();
        settings.statistics.as_mut().unwrap().resamples = Some(resamples);
        let job = create(client, request("nightly", vec![adapter("poet")], settings)).await.unwrap();
        reported(client, &job.id).await
    };
    let client = &server.client;
    refused(point(client, "poet", Some("lenient")).await, Code::FailedPrecondition, "AUDIT_GATE_FAILED");
    assert_eq!(gate(client).await, [], "the alias points nowhere yet");
    assert_eq!((checks(client, "refused").await, checks(client, "passed").await), (1.0, 0.0));
    audit(client, 200).await;
    point(client, "poet", Some("lenient")).await.unwrap();
    assert_eq!(gate(client).await, is(1.0));
    assert_eq!((checks(client, "refused").await, checks(client, "passed").await), (1.0, 1.0));
    // The nightly audit proves less than the policy asks for: the alias stays, and its gate says so.
    audit(client, 20).await;
    assert_eq!(gate(client).await, is(0.0));
    let status = refused(point(client, "poet", None).await, Code::FailedPrecondition, "AUDIT_GATE_FAILED");
    assert!(status.message().contains("20 resamples, at least 200 are asked"), "{status:?}");

    server.process.kill();
    server.process = client::spawn(&server.settings).await;
    server.client = Client::connect(&server.process).await;
    let client = &server.client;
    assert_eq!(gate(client).await, is(0.0), "from what is stored");
    audit(client, 200).await;
    assert_eq!(gate(client).await, is(1.0));
    // Without the demand there is no gate.
    point(client, "poet", Some("")).await.unwrap();
    assert_eq!(gate(client).await, []);
    point(client, "poet", Some("lenient")).await.unwrap();
    let request = pb::DeleteAliasRequest { name: "prod".into(), ..Default::default() };
    client.adapters.clone().delete_alias(request).await.unwrap();
    assert_eq!(gate(client).await, []);
}

#[tokio::test]
async fn a_policy_says_what_an_audit_has_to_be() {
    let server = client::start().await;
    let client = &server.client;
    let dataset = upload(client, "rows", &rows(), declaration()).await;
    client.publish("poet", "lora_qv").await;
    let job = create(client, request("gate", vec![base(), adapter("poet")], settings())).await.unwrap();
    let report = reported(client, &job.id).await;
    let usual = |name: &str| pb::AuditPolicy { name: name.into(), rules: vec![gap(1.0)], ..Default::default() };
    let made = create_policy(client, usual("usual")).await.unwrap();
    assert_eq!((made.min_level, made.min_resamples, made.min_group), (Some(0.95), Some(1000), Some(30)));
    let status = refused(point(client, "poet", Some("usual")).await, Code::FailedPrecondition, "AUDIT_GATE_FAILED");
    assert!(status.message().contains("200 resamples, at least 1000 are asked"), "{status:?}");
    let few = |name: &str| pb::AuditPolicy { min_resamples: Some(200), ..usual(name) };
    // On the data set by id or name, made like the report: passes.
    let named = pb::AuditPolicy { dataset: "rows".into(), settings_of: "gate".into(), ..few("named") };
    assert_eq!(create_policy(client, named).await.unwrap().settings_of, report.id);
    point(client, "poet", Some("named")).await.unwrap();
    create_policy(client, pb::AuditPolicy { dataset: dataset.id, ..few("by-id") }).await.unwrap();
    point(client, "poet", Some("by-id")).await.unwrap();
    for (policy, reason) in [
        (pb::AuditPolicy { dataset: "others".into(), ..few("a") }, "not others"),
        (pb::AuditPolicy { min_level: Some(0.99), ..few("b") }, "has level 0.95, at least 0.99 is asked"),
        (pb::AuditPolicy { require_known_training: true, ..few("c") }, "poet was trained on are not known"),
        (
            pb::AuditPolicy { rules: vec![pb::AuditRule { allow_low_support: false, ..gap(1.0) }], ..few("d") },
            "takes 10 rows for enough (min_group), the policy asks for 30",
        ),
    ] {
        let name = policy.name.clone();
        create_policy(client, policy).await.unwrap();
        let status = refused(point(client, "poet", Some(&name)).await, Code::FailedPrecondition, "AUDIT_GATE_FAILED");
        assert!(status.message().contains(reason), "{reason}: {status:?}");
    }
    let unknown = pb::AuditPolicy { settings_of: "nothing".into(), ..few("e") };
    refused(create_policy(client, unknown).await, Code::NotFound, "REPORT_NOT_FOUND");
    let faulty =
        pb::AuditPolicy { min_level: Some(1.0), settings_of: "no name".into(), dataset: "\n".into(), ..few("e") };
    let status = refused(create_policy(client, faulty).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&status), ["policy.dataset", "policy.min_level", "policy.settings_of"]);

    // Another threshold, on the same rows under the same name.
    let mut other = settings();
    other.threshold = Some(0.25);
    let job = create(client, request("gate", vec![base(), adapter("poet")], other)).await.unwrap();
    reported(client, &job.id).await;
    let status = refused(point(client, "poet", Some("named")).await, Code::FailedPrecondition, "AUDIT_GATE_FAILED");
    assert!(status.message().contains("settings.threshold was 0.5, is 0.25"), "{status:?}");
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
