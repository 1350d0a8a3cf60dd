//! What `--help` says, word for word. Run with `UPDATE_EXPECT=1` to accept what it says now.

use std::path::Path;
use std::process::Command;

#[test]
fn help_is_as_recorded() {
    let commands = [
        "",
        "host",
        "dev",
        "hosts",
        "hosts cordon",
        "hosts uncordon",
        "hosts drain",
        "workload",
        "workload start",
        "workload stop",
        "workload status",
        "workload list",
        "secrets",
        "secrets seal",
        "oci",
        "oci pull",
        "oci push",
        "inspect",
        "completion",
    ];
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/help");
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    for command in commands {
        let output = Command::new(env!("CARGO_BIN_EXE_wash"))
            .args(command.split_whitespace())
            .arg("--help")
            .env_clear()
            .env("COLUMNS", "100")
            .output()
            .unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{command}: {output:?}"
        );
        let text = String::from_utf8(output.stdout).unwrap();
        let name = if command.is_empty() {
            "wash".to_owned()
        } else {
            command.replace(' ', "-")
        };
        let file = golden.join(name).with_extension("txt");
        if update {
            std::fs::write(&file, &text).unwrap();
        }
        let recorded = std::fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(
            text, recorded,
            "`wash {command} --help` has changed; UPDATE_EXPECT=1 accepts it"
        );
    }
}
