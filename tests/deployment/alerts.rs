//! The alerts: Prometheus understands them, and each fires and is silent where it should.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::{copy, metrics, repository, said, tool, yaml};

fn rules() -> Vec<Value> {
    let file = yaml(&repository("deploy/prometheus/fastvideo.rules.yml"));
    let groups = file["groups"].as_array().unwrap();
    let rules = groups.iter().flat_map(|g| g["rules"].as_array().unwrap());
    rules.cloned().collect()
}

/// Every alert with all its rules.
fn alerts() -> BTreeMap<String, Vec<Value>> {
    let mut alerts: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for rule in rules() {
        if let Some(name) = rule["alert"].as_str() {
            alerts.entry(name.to_owned()).or_default().push(rule);
        }
    }
    alerts
}

fn test_files(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder.join("tests")).unwrap();
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

/// Whether promtool finds that the rules do what the files say, and what it tells.
fn test_rules(files: &[PathBuf]) -> (bool, String) {
    let output = tool("promtool")
        .args(["test", "rules"])
        .args(files)
        .output();
    let output = output.unwrap();
    (output.status.success(), said(&output))
}

#[test]
fn rules_are_valid_and_do_what_their_tests_say() {
    let rules = repository("deploy/prometheus/fastvideo.rules.yml");
    let output = tool("promtool")
        .args(["check", "rules"])
        .arg(rules)
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let (passed, said) = test_rules(&test_files(&repository("deploy/prometheus")));
    assert!(passed, "{said}");
}

#[test]
fn a_limit_that_moves_is_noticed() {
    for (limit, moved) in [
        ("[15m])) > 3", "[15m])) > 30"),
        ("kind!=\"asked\"", "kind!=\"\""),
        ("== 1\n        for: 5m", "== 1\n        for: 1m"),
    ] {
        let folder = TempDir::new().unwrap();
        copy(&repository("deploy/prometheus"), folder.path());
        let rules = folder.path().join("fastvideo.rules.yml");
        let before = fs::read_to_string(&rules).unwrap();
        let after = before.replacen(limit, moved, 1);
        assert_ne!(before, after, "{limit}");
        fs::write(rules, after).unwrap();
        let (passed, said) = test_rules(&[folder.path().join("tests/workers.yml")]);
        assert!(!passed, "{limit} -> {moved}: {said}");
    }
}

#[test]
fn every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_is_silent() {
    let (mut fires, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for file in test_files(&repository("deploy/prometheus")) {
        for test in yaml(&file)["tests"].as_array().unwrap() {
            let cases = test["alert_rule_test"].as_array().unwrap();
            for case in cases {
                let name = case["alertname"].as_str().unwrap().to_owned();
                let expected = case["exp_alerts"].as_array();
                if expected.is_some_and(|alerts| !alerts.is_empty()) {
                    fires.insert(name);
                } else if cases.len() == 1 {
                    // Else the case may only show that the alert does not come early.
                    silent.insert(name);
                }
            }
        }
    }
    let alerts: BTreeSet<String> = alerts().into_keys().collect();
    assert_eq!(fires, alerts);
    assert!(silent.is_superset(&alerts), "{silent:?} {alerts:?}");
}

#[test]
fn every_alert_says_how_urgent_it_is_and_what_to_do() {
    let manual = fs::read_to_string(repository("docs/operations.md")).unwrap();
    for (name, rules) in alerts() {
        assert!(
            manual.lines().any(|line| line == format!("### {name}")),
            "docs/operations.md has no section {name}"
        );
        for rule in rules {
            let runbook = format!("docs/operations.md#{}", name.to_lowercase());
            assert_eq!(rule["annotations"]["runbook_url"], runbook, "{name}");
            let severity = rule["labels"]["severity"].as_str();
            assert!(matches!(severity, Some("page" | "warning")), "{name}");
            assert!(rule["annotations"]["summary"].is_string(), "{name}");
        }
    }
}

#[test]
fn rules_use_metrics_that_exist() {
    for rule in rules() {
        let name = rule["alert"].as_str().or(rule["record"].as_str()).unwrap();
        let used = metrics::check(name, rule["expr"].as_str().unwrap());
        // A recorded series stands for metrics that were looked at in its own rule.
        assert!(!used.is_empty(), "{name}");
    }
}
