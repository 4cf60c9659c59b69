//! The operator's manual.

use std::collections::BTreeSet;
use std::fs;

use super::repository;

/// The anchor that GitHub and GitLab give a heading.
fn anchor(heading: &str) -> String {
    (heading.trim().to_lowercase().chars())
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn links_inside_the_manual_lead_to_a_section() {
    let manual = fs::read_to_string(repository("docs/operations.md")).unwrap();
    let sections: BTreeSet<String> = (manual.lines())
        .filter(|line| line.starts_with('#'))
        .map(|line| anchor(line.trim_start_matches('#')))
        .collect();
    let mut links = 0;
    for (at, _) in manual.match_indices("](#") {
        let link = manual[at + 3..].split(')').next().unwrap();
        assert!(sections.contains(link), "#{link}");
        links += 1;
    }
    assert!(links > 10);
}

#[test]
fn files_that_the_manual_names_exist() {
    let manual = fs::read_to_string(repository("docs/operations.md")).unwrap();
    let is_part = |c: char| c.is_ascii_alphanumeric() || "/._-*".contains(c);
    let mut named = BTreeSet::new();
    for (at, _) in manual.match_indices("deploy/") {
        let path: String = manual[at..].chars().take_while(|c| is_part(*c)).collect();
        named.insert(path.trim_end_matches('.').to_owned());
    }
    // Operators make it.
    named.remove("deploy/compose/router.key");
    assert!(named.len() > 8, "{named:?}");
    for path in named {
        let folder = path.split('*').next().unwrap();
        assert!(repository(folder).exists(), "{path}");
    }
}
