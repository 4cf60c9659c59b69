//! The Grafana dashboard: every query is valid and asks for metrics that exist.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{metrics, repository, said, tool};

fn board() -> Value {
    let text = fs::read_to_string(repository("deploy/grafana/fastvideo.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Title and expression of every query.
fn queries() -> Vec<(String, String)> {
    let board = board();
    let mut queries = Vec::new();
    for panel in board["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push((title.to_owned(), target["expr"].as_str().unwrap().into()));
        }
    }
    queries
}

/// An expression with what Grafana puts in place of its variables.
fn filled_in(expression: &str) -> String {
    let filled = expression
        .replace("$__rate_interval", "1m")
        .replace("$__range", "3h")
        .replace("$instance", ".*")
        .replace("$tenant", ".*");
    // `$1` is a group of `label_replace`.
    assert!(!filled.replace("$1", "").contains('$'), "{expression}");
    filled
}

#[test]
fn every_query_is_valid_promql_over_metrics_that_exist() {
    let queries = queries();
    assert!(queries.len() > 70, "{}", queries.len());
    let mut rules = Vec::new();
    for (number, (title, expression)) in queries.iter().enumerate() {
        let used = metrics::check(title, expression);
        assert!(!used.is_empty(), "{title}");
        rules.push(json!({"record": format!("board:{number}"), "expr": filled_in(expression)}));
    }
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("rules.yml");
    // JSON is YAML.
    let groups = json!({"groups": [{"name": "board", "rules": rules}]});
    fs::write(&file, groups.to_string()).unwrap();
    let output = tool("promtool").args(["check", "rules"]).arg(file).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn the_board_has_its_rows_and_variables_and_takes_any_data_source() {
    let board = board();
    let panels = board["panels"].as_array().unwrap();
    let rows: Vec<&str> = (panels.iter())
        .filter(|panel| panel["type"] == "row")
        .map(|row| row["title"].as_str().unwrap())
        .collect();
    let expected = [
        "Viewers", "Segments", "Workers", "GPU", "Prompts", "Store", "Server", "Tenants",
        "Security",
    ];
    assert_eq!(rows, expected);
    let variables = board["templating"]["list"].as_array().unwrap();
    let variables: Vec<&str> = (variables.iter())
        .map(|variable| variable["name"].as_str().unwrap())
        .collect();
    assert_eq!(variables, ["datasource", "instance", "tenant"]);
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let place = &panel["gridPos"];
        for x in place["x"].as_u64().unwrap()
            ..(place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap())
        {
            assert!(places.insert((x, place["y"].as_u64().unwrap())), "{panel}");
        }
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{panel}");
        }
    }
}
