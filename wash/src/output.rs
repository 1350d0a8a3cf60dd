//! The only place that prints: results to stdout, everything said about them to stderr.

use std::io::Write;
use std::process::ExitCode;

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[value(alias = "plain")]
    Text,
    /// One object {"message", "success", "data"}, for failures too
    Json,
}

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It did not work.
    Failed = 1,
    /// It was asked wrongly.
    Usage = 2,
    /// A host said no.
    Refused = 3,
    /// Nobody answers.
    Unreachable = 4,
    /// It was interrupted.
    Interrupted = 130,
}

/// What a command found or did.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// One sentence; nothing to say when empty.
    pub(crate) message: String,
    /// The result for people and pipes.
    pub(crate) text: String,
    /// The result for programs.
    pub(crate) data: Value,
}

/// Why a command did not work.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    report: Report,
    hint: Option<String>,
}

impl Failure {
    /// Shape: `message` says the thing and the cause.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        let report = Report {
            message: message.into(),
            ..Report::default()
        };
        Self {
            exit,
            report,
            hint: None,
        }
    }

    /// Wrong usage or configuration.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Adds what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// How the command ends.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// The thing and the cause.
    pub(crate) fn message(&self) -> &str {
        &self.report.message
    }

    /// A failure that still has a result to show.
    pub(crate) fn with_report(exit: Exit, report: Report) -> Self {
        Self {
            exit,
            report,
            hint: None,
        }
    }

    /// The same failure as the first cause of a larger one, which still has a result to show.
    pub(crate) fn within(self, exit: Exit, mut report: Report) -> Self {
        report.message = format!("{}: {}", report.message, self.report.message);
        Self {
            exit,
            report,
            ..self
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Failed, capabilities::report(error.as_ref()))
    }
}

/// Prints the result and says how to end.
pub(crate) fn finish(format: Format, result: Result<Report, Failure>) -> ExitCode {
    let (code, success, mut report, hint) = match result {
        Ok(report) => (ExitCode::SUCCESS, true, report, None),
        Err(failure) => (
            ExitCode::from(failure.exit as u8),
            false,
            failure.report,
            failure.hint,
        ),
    };
    match format {
        Format::Text => {
            out(&report.text);
            let prefix = if success { "" } else { "error: " };
            if !report.message.is_empty() {
                note(&format!("{prefix}{}", report.message));
            }
            if let Some(hint) = hint {
                note(&format!("hint: {hint}"));
            }
        }
        Format::Json => {
            if let Some(hint) = hint {
                report.message.push_str(&format!(" (hint: {hint})"));
            }
            let envelope =
                json!({ "message": report.message, "success": success, "data": report.data });
            out(&format!("{envelope:#}"));
        }
    }
    code
}

/// Prints `text` and a line end to stdout.
fn out(text: &str) {
    if !text.is_empty() {
        // Who closed the pipe has read enough.
        let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end_matches('\n'));
    }
}

/// Prints a line for people to stderr.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", printable(text));
}

/// Rows under headings, in columns.
pub(crate) fn table<const N: usize>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headings);
    for row in rows {
        table.add_row(row.map(|cell| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                printable(&cell)
            }
        }));
    }
    // The first column begins at the edge and the last one ends with its text.
    let lines = table.lines().map(|line| {
        line.strip_prefix(' ')
            .unwrap_or(&line)
            .trim_end()
            .to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A stranger's text with its control characters escaped, so that it cannot drive a terminal.
pub(crate) fn printable(text: &str) -> String {
    let escape = |c: char| {
        if c.is_control() && c != '\n' {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_aligned_columns_and_harmless_cells() {
        let text = table(
            ["ID", "STATE"],
            [
                ["a".into(), "up".into()],
                ["long-id".into(), String::new()],
                ["x\u{1b}[2J".into(), "y".into()],
            ],
        );
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "ID          STATE");
        assert_eq!(lines[1], "a           up");
        assert_eq!(lines[2], "long-id     -");
        assert_eq!(lines[3], "x\\u{1b}[2J  y");
    }
}
