//! All rows can be measured. How fast they are is nobody's business here.

use std::{fs, process::Command};

use serde_json::Value;

#[test]
fn every_row_has_figures() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_benches"))
        .args(["--short", "--total", "320", "--json"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let shown = String::from_utf8(output.stdout).unwrap();
    let json: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let figures = json["figures"].as_array().unwrap();
    let rows: Vec<_> = figures
        .iter()
        .map(|figure| figure["row"].as_str().unwrap())
        .collect();
    assert_eq!(rows, ["http", "http", "keyvalue", "starts"]);
    for figure in figures {
        for side in ["wash", "peer", "ratio"] {
            let rounds = figure[side]["rounds"].as_array().unwrap();
            assert_eq!(rounds.len(), 3);
            let real = |round: &Value| round.as_f64().is_some_and(|round| round > 0.0);
            assert!(rounds.iter().all(real), "{side} of {figure}");
        }
        let title = format!(
            "{}: {}",
            figure["row"].as_str().unwrap(),
            figure["what"].as_str().unwrap()
        );
        assert!(shown.contains(&title), "no \"{title}\" in\n{shown}");
    }
}
