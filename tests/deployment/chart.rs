//! The Helm chart and the manifests that are made of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;

use super::{repository, said};
use crate::harness::{command, python};

/// The oldest version of Kubernetes that has all that the chart uses and that the validator knows, and its newest.
const KUBERNETES: [&str; 2] = ["1.35", "1.37"];

/// Renders the chart with values, given as YAML, into a folder.
fn render(values: &str, folder: &Path) -> Output {
    let given = TempDir::new().unwrap();
    let file = given.path().join("values.yaml");
    fs::write(&file, values).unwrap();
    (python().arg(repository("deploy/helm/render")))
        .args([folder, &file])
        .output()
        .unwrap()
}

/// The manifests by kind and name that the chart makes of values, after they were found valid.
fn manifests(values: &str) -> BTreeMap<String, Value> {
    let folder = TempDir::new().unwrap();
    let output = render(values, folder.path());
    assert!(output.status.success(), "{values}: {}", said(&output));
    validate(folder.path());
    let mut found = BTreeMap::new();
    for file in fs::read_dir(folder.path()).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        for manifest in documents {
            let kind = manifest["kind"].as_str().unwrap();
            let name = manifest["metadata"]["name"].as_str().unwrap();
            found.insert(format!("{kind} {name}"), manifest);
        }
    }
    found
}

fn validate(folder: &Path) {
    let files: Vec<_> = (fs::read_dir(folder).unwrap())
        .map(|file| file.unwrap().path())
        .filter(|file| !file.ends_with("values.yaml"))
        .collect();
    for version in KUBERNETES {
        let output = (python().arg(repository("tests/data/validate_manifests.py")))
            .arg(version)
            .args(&files)
            .output()
            .unwrap();
        assert!(output.status.success(), "{version}: {}", said(&output));
    }
}

#[test]
fn plain_manifests_are_what_the_chart_makes() {
    let folder = TempDir::new().unwrap();
    let values = fs::read_to_string(repository("deploy/kubernetes/values.yaml")).unwrap();
    let output = render(&values, folder.path());
    assert!(output.status.success(), "{}", said(&output));
    let read = |folder: &Path| -> BTreeMap<String, String> {
        let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap());
        (files.filter(|file| file.file_name() != "values.yaml"))
            .map(|file| {
                let name = file.file_name().into_string().unwrap();
                (name, fs::read_to_string(file.path()).unwrap())
            })
            .collect()
    };
    let (stored, rendered) = (read(&repository("deploy/kubernetes")), read(folder.path()));
    assert_eq!(
        stored, rendered,
        "`make manifests` makes deploy/kubernetes anew"
    );
    validate(&repository("deploy/kubernetes"));
}

#[test]
fn the_chart_has_the_rules_that_are_tested() {
    let rules = |path: &str| fs::read_to_string(repository(path)).unwrap();
    assert_eq!(
        rules("deploy/helm/fastvideo/files/fastvideo.rules.yml"),
        rules("deploy/prometheus/fastvideo.rules.yml"),
        "`make manifests` copies them"
    );
}

#[test]
fn gpus_come_from_the_device_plugin_or_from_resource_claims() {
    let server = |mode: &str| {
        let values = format!("servers: {{gpu: {{mode: {mode}, count: 4}}}}");
        let mut manifests = manifests(&values);
        let server = manifests.remove("StatefulSet fastvideo-server").unwrap();
        (manifests, server["spec"]["template"]["spec"].clone())
    };
    let (_, pod) = server("devicePlugin");
    let resources = &pod["containers"][0]["resources"];
    assert_eq!(resources["limits"]["nvidia.com/gpu"], 4);
    let (manifests, pod) = server("dra");
    let resources = &pod["containers"][0]["resources"];
    assert_eq!(resources["limits"]["nvidia.com/gpu"], Value::Null);
    assert_eq!(
        resources["claims"][0]["name"],
        pod["resourceClaims"][0]["name"]
    );
    let claim = &manifests["ResourceClaimTemplate fastvideo-server"];
    let request = &claim["spec"]["spec"]["devices"]["requests"][0];
    assert_eq!(request["exactly"]["count"], 4);
    let (manifests, pod) = server("none");
    assert!(!pod.to_string().contains("gpu\""), "{pod}");
    assert!(!manifests.contains_key("ResourceClaimTemplate fastvideo-server"));
}

#[test]
fn pods_have_the_time_that_their_configuration_promises() {
    let manifests = manifests(
        "{serve: {server: {grace_seconds: 200}}, router: {router: {linger_seconds: 10}}}",
    );
    let seconds = |name: &str| {
        manifests[name]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].clone()
    };
    assert_eq!(seconds("StatefulSet fastvideo-server"), 240);
    assert_eq!(seconds("Deployment fastvideo-router"), 70);
}

#[test]
fn servers_are_scaled_by_the_routers_count_or_by_their_places() {
    let trigger = |source: &str| {
        let values = format!(
            "{{autoscaling: {{enabled: true, source: {source}}}, servers: {{gpu: {{count: 4}}}},
              serve: {{streaming: {{pool: {{sessions_per_gpu: 2}}}}}}}}"
        );
        let manifests = manifests(&values);
        // The number of servers is KEDA's.
        let servers = &manifests["StatefulSet fastvideo-server"]["spec"]["replicas"];
        assert_eq!(*servers, Value::Null);
        manifests["ScaledObject fastvideo-server"]["spec"]["triggers"][0].clone()
    };
    let demand = trigger("demand");
    assert_eq!(demand["metadata"]["targetValue"], "4");
    let prometheus = trigger("prometheus");
    assert_eq!(prometheus["metadata"]["threshold"], "6.4");
    let query = prometheus["metadata"]["query"].as_str().unwrap();
    super::metrics::check("ScaledObject", query);
}

#[test]
fn alerts_of_the_cluster_lead_to_the_manual_of_the_operator() {
    let manifests = manifests(
        "monitoring: {enabled: true, runbookBase: \"https://wiki.example.org/\", keySecret: scraper}",
    );
    let rules = manifests["PrometheusRule fastvideo"].to_string();
    assert!(rules.contains("https://wiki.example.org/docs/operations.md#noworker"));
    let monitor = &manifests["ServiceMonitor fastvideo-server"]["spec"]["endpoints"][0];
    assert_eq!(monitor["port"], "admin");
    assert_eq!(monitor["authorization"]["credentials"]["name"], "scraper");
}

#[test]
fn wrong_values_are_refused_by_name() {
    for (values, named) in [
        ("servers: {gpu: {mode: cuda}}", "mode"),
        ("servers: {gpus: 2}", "gpus"),
        ("serve: {server: {admin_port: 70000}}", "admin_port"),
        ("routers: {replicas: 0}", "replicas"),
        ("autoscaling: {source: guess}", "source"),
        ("monitoring: {runbookBase: \"https://wiki\"}", "runbookBase"),
    ] {
        let folder = TempDir::new().unwrap();
        let output = render(values, &folder.path().join("out"));
        assert!(!output.status.success(), "{values}");
        assert!(said(&output).contains(named), "{values}: {}", said(&output));
        assert!(!folder.path().join("out").exists());
    }
}

#[test]
fn the_programs_understand_the_configurations_of_the_chart() {
    let manifests = manifests("{}");
    let folder = TempDir::new().unwrap();
    let key = folder.path().join("keys");
    fs::write(&key, "k".repeat(40)).unwrap();
    let file = |kind: &str| {
        let config = &manifests[&format!("ConfigMap fastvideo-{kind}")]["data"];
        let text = config.as_object().unwrap().values().next().unwrap();
        // The secret is mounted there.
        let text = text.as_str().unwrap();
        let text = text.replace("/etc/fastvideo/key/keys", key.to_str().unwrap());
        let path = folder.path().join(kind);
        fs::write(&path, text).unwrap();
        path
    };
    // This machine need not have GPUs.
    let server = (command().args(["check", "--offline", "--gpus=2", "--config"]))
        .arg(file("server"))
        .output()
        .unwrap();
    assert!(server.status.success(), "{}", said(&server));
    let router = (command().args(["router", "check", "--config"]))
        .arg(file("router"))
        .output()
        .unwrap();
    assert!(router.status.success(), "{}", said(&router));
}
