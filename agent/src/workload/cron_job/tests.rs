use rstest::rstest;
use serde_json::{Value, json};

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn cron(spec: &Value, status: &Value) -> CronJob {
    let mut all = json!({
        "schedule": "0 * * * *", "timeZone": "UTC", "concurrencyPolicy": "Allow", "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 1, "jobTemplate": {"spec": {"template": {"spec": {"containers": []}}}},
    });
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let object = json!({
        "metadata": {"name": "tick", "namespace": "ops", "creationTimestamp": "2026-01-01T00:30:00Z"}, "spec": all, "status": status,
    });
    serde_json::from_value(object).unwrap()
}

fn job(name: &str, condition: Option<&str>) -> Job {
    let conditions: Vec<Value> = condition
        .iter()
        .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T01:00:05Z"}))
        .collect();
    let status = json!({"startTime": format!("2026-01-01T01:00:0{}Z", name.len()), "conditions": conditions,
        "completionTime": (condition == Some("Complete")).then_some("2026-01-01T01:00:05Z")});
    serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "status": status})).unwrap()
}

fn reasons(planned: &Planned) -> Vec<&'static str> {
    planned.steps.said.iter().map(|s| s.reason).collect()
}

fn created(planned: &Planned) -> Option<&str> {
    planned.create.as_ref()?.metadata.annotations.as_ref()?.get(SCHEDULED).map(String::as_str)
}

#[rstest]
#[case::not_yet(json!({}), "2026-01-01T00:59:59Z", None)]
#[case::now(json!({}), "2026-01-01T01:00:00Z", Some("2026-01-01T01:00:00Z"))]
#[case::only_the_latest_of_those_missed(json!({}), "2026-01-01T05:10:00Z", Some("2026-01-01T05:00:00Z"))]
#[case::after_years(json!({"schedule": "* * * * *"}), "2029-07-01T05:10:30Z", Some("2029-07-01T05:10:00Z"))]
#[case::after_years_rare(json!({"schedule": "0 0 1 1 *"}), "2029-07-01T05:10:30Z", Some("2029-01-01T00:00:00Z"))]
#[case::within_the_deadline(json!({"startingDeadlineSeconds": 600}), "2026-01-01T05:09:59Z", Some("2026-01-01T05:00:00Z"))]
#[case::past_the_deadline(json!({"startingDeadlineSeconds": 60}), "2026-01-01T05:10:00Z", None)]
#[case::suspended(json!({"suspend": true}), "2026-01-01T05:10:00Z", None)]
#[case::zone(json!({"timeZone": "Asia/Kolkata"}), "2026-01-01T01:30:00Z", Some("2026-01-01T07:00:00+05:30"))]
#[case::every(json!({"schedule": "@every 20m"}), "2026-01-01T01:12:00Z", Some("2026-01-01T01:10:00Z"))]
#[case::every_after_years(json!({"schedule": "@every 1m"}), "2029-07-01T05:10:30Z", Some("2029-07-01T05:10:00Z"))]
fn when_a_job_begins(#[case] spec: Value, #[case] now: &str, #[case] expected: Option<&str>) {
    let planned = plan(&cron(&spec, &json!({})), &[], at(now));
    assert_eq!(created(&planned), expected, "{:?}", planned.steps);
    assert_eq!(planned.steps.again.is_some(), spec["suspend"] != true);
    if expected.is_some() {
        assert!(planned.status.last_schedule_time.is_some());
    }
}

#[test]
fn a_moment_is_served_once() {
    let status = json!({"lastScheduleTime": "2026-01-01T01:00:00Z"});
    let planned = plan(&cron(&json!({}), &status), &[], at("2026-01-01T01:00:30Z"));
    assert!(planned.create.is_none());
    assert_eq!(planned.steps.again, Some(at("2026-01-01T02:00:00Z")));
}

#[test]
fn many_missed_moments_are_told() {
    let planned = plan(&cron(&json!({"schedule": "* * * * *"}), &json!({})), &[], at("2026-01-02T00:00:00Z"));
    assert_eq!(reasons(&planned), ["TooManyMissedTimes", "SuccessfulCreate"]);
}

#[rstest]
#[case("Allow", true, 0)]
#[case("Forbid", false, 0)]
#[case("Replace", true, 1)]
fn one_still_runs(#[case] policy: &str, #[case] begins: bool, #[case] ended: usize) {
    let status = json!({"active": [{"name": "a", "uid": "a"}], "lastScheduleTime": "2026-01-01T01:00:00Z"});
    let planned = plan(&cron(&json!({"concurrencyPolicy": policy}), &status), &[job("a", None)], at("2026-01-01T02:00:00Z"));
    assert_eq!((planned.create.is_some(), planned.delete.len()), (begins, ended), "{:?}", planned.steps);
    assert_eq!(reasons(&planned).contains(&"JobAlreadyActive"), policy == "Forbid");
}

#[test]
fn ended_jobs_are_kept_up_to_the_limits() {
    let complete = ["a", "bb", "ccc", "dddd", "eeeee"].map(|name| job(name, Some("Complete")));
    let failed = ["ffffff", "ggggggg"].map(|name| job(name, Some("Failed")));
    let jobs: Vec<Job> = complete.into_iter().chain(failed).collect();
    let status =
        json!({"lastScheduleTime": "2026-01-01T01:00:00Z", "active": [{"name": "a", "uid": "a"}, {"name": "x", "uid": "x"}]});
    let mut planned = plan(&cron(&json!({}), &status), &jobs, at("2026-01-01T01:30:00Z"));
    planned.delete.sort();
    assert_eq!(planned.delete, ["a", "bb", "ffffff"]);
    assert!(reasons(&planned).contains(&"SawCompletedJob") && reasons(&planned).contains(&"MissingJob"));
    assert_eq!(planned.status.active, None);
    assert_eq!(planned.status.last_successful_time.unwrap().0, at("2026-01-01T01:00:05Z"));
}
