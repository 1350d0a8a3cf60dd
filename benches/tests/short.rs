//! All rows can be measured. How fast they are is nobody's business here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use serde_json::Value;

#[test]
fn every_row_has_figures() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_benches"))
        .args(["--short", "--total", "320", "--json"])
        .arg(&file)
        .env_remove("WASMTIME")
        .env_remove("BENCHES_PYTHON_COMPONENT")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let shown = String::from_utf8(output.stdout).unwrap();
    let json: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let mut rows = BTreeMap::<_, BTreeSet<_>>::new();
    for table in json["tables"].as_array().unwrap() {
        let (row, what) = (
            table["row"].as_str().unwrap(),
            table["what"].as_str().unwrap(),
        );
        let title = format!("{row}: {what}");
        assert!(shown.contains(&title), "no \"{title}\" in\n{shown}");
        for side in table["sides"].as_array().unwrap() {
            rows.entry(row)
                .or_default()
                .insert(side["name"].as_str().unwrap());
            let rounds = side["rounds"].as_array().unwrap();
            assert!(!rounds.is_empty(), "{table}");
            assert!(rounds.iter().all(Value::is_number), "{side} of {table}");
        }
        // What is counted in a second was done at all.
        let counts = what.contains("per second") && !what.starts_with("refusals");
        let none = |side: &Value| side["median"].as_f64().is_none_or(|median| median <= 0.0);
        let idle = table["sides"]
            .as_array()
            .unwrap()
            .iter()
            .find(|side| none(side));
        assert!(!counts || idle.is_none(), "{table}");
    }
    // The one row that needs a program which tests do not install; without it, it says so.
    let counted = rows.remove("instructions").is_some();
    assert_eq!(counted, !shown.contains("needs valgrind"), "{shown}");
    let names: Vec<_> = rows.keys().copied().collect();
    assert_eq!(
        names,
        [
            "blob",
            "density",
            "drain",
            "http",
            "keyvalue",
            "latency",
            "messaging",
            "overload",
            "restore",
            "starts",
            "starvation"
        ]
    );
    for row in ["keyvalue", "blob"] {
        assert!(rows[row].contains("sqlx"), "{:?}", rows[row]);
    }
    for side in ["raw hyper", "wash host", "wash host, warm"] {
        assert!(
            rows["http"].contains(side),
            "no \"{side}\" in {:?}",
            rows["http"]
        );
    }
}

#[test]
fn what_cannot_be_measured_says_why() {
    let refused = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_benches"));
        let output = { output }.args(args).output().unwrap();
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&["speed"]).contains("there is no row and no option \"speed\""));
    assert!(refused(&["--rounds", "2"]).contains("at least 3"));
}
