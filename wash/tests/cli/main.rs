//! The commands as somebody at a terminal sees them: output, exit code, nothing else.

#![cfg(test)]

mod commands;
mod hosts;
mod images;

use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;

/// How a command ended.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    /// The result for programs, checked for its shape.
    fn envelope(&self) -> Value {
        let value: Value = serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", self.stdout, self.stderr));
        assert!(value["message"].is_string(), "{value}");
        assert_eq!(value["success"], self.code == 0, "{value}");
        assert_eq!(value.as_object().unwrap().len(), 3, "{value}");
        value
    }
}

/// `wash` with the words of `line`, in an environment of its own.
fn wash(line: &str) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_wash"));
    command
        .args(line.split_whitespace())
        .env_clear()
        .kill_on_drop(true)
        .stdin(std::process::Stdio::null());
    command
}

async fn run(line: &str) -> Ran {
    ran(wash(line).output().await.unwrap())
}

fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A component of the examples.
fn example(name: &str) -> PathBuf {
    let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples");
    examples.join(name).join(name).with_extension("wasm")
}
