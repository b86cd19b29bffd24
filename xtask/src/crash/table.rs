//! What the sweeps found, as a table for people and as JSON for programs.

use std::fmt;
use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

/// One sweep: a verb, a way to stop it, a filesystem.
pub struct Row {
    /// The verb, with its situation.
    pub verb: &'static str,
    /// The way.
    pub mode: String,
    /// Whether it is an error number.
    pub is_error: bool,
    /// The filesystem.
    pub kind: &'static str,
    /// The mutating calls of an undisturbed run.
    pub n_calls: u64,
    /// The states that were made.
    pub n_states: u64,
    /// Those that were bad.
    pub bad: Vec<Bad>,
    /// How long it took.
    pub seconds: f64,
}

/// One bad state.
pub struct Bad {
    /// The number of the call.
    pub at: u64,
    /// The call.
    pub struck: String,
    /// What is wrong.
    pub problems: Vec<String>,
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "at {}, {}: {}", self.at, self.struck, self.problems.join("\n    "))
    }
}

impl Row {
    /// Returns the row as a line of progress.
    pub fn line(&self) -> String {
        let Row { verb, mode, kind, n_states, seconds, n_calls, .. } = self;
        let n_bad = self.bad.len();
        format!("{verb:18} {kind:5} {mode:12} {n_calls:5} calls {n_states:5} states {n_bad:5} bad {seconds:7.1} s")
    }
}

/// A column: its title, and which sweeps are in it.
type Column = (&'static str, fn(&Row) -> bool);

/// The ways to stop a verb, as the table groups them.
const COLUMNS: &[Column] = &[
    ("kill -9", |row| row.mode == "kill"),
    ("power cut", |row| row.mode == "cut"),
    ("power cut, journal committed", |row| row.mode == "cut-journal"),
    ("gc meanwhile", |row| row.mode == "gc-meanwhile"),
    ("one error", |row| row.is_error && !row.mode.ends_with("-on")),
    ("errors from there on", |row| row.is_error && row.mode.ends_with("-on")),
];

/// Returns the table: bad states of all states, per verb and filesystem; and below it the bad ones, each with how to see it again.
pub fn markdown(rows: &[Row], wall: Duration) -> String {
    let columns: Vec<&Column> = COLUMNS.iter().filter(|(_, is_here)| rows.iter().any(is_here)).collect();
    let mut text = String::from("| verb | filesystem | calls |");
    columns.iter().for_each(|(title, _)| write!(text, " {title} |").expect(STRING));
    text += "\n|---|---|---:|";
    text += &"---:|".repeat(columns.len());
    text += "\n";
    for group in rows.chunk_by(|a, b| (a.verb, a.kind) == (b.verb, b.kind)) {
        write!(text, "| {} | {} | {} |", group[0].verb, group[0].kind, group[0].n_calls).expect(STRING);
        for (_, is_here) in &columns {
            let here = || group.iter().filter(|row| is_here(row));
            let n_states: u64 = here().map(|row| row.n_states).sum();
            let n_bad: usize = here().map(|row| row.bad.len()).sum();
            match n_states {
                0 => text += " |",
                _ => write!(text, " {n_bad} of {n_states} |").expect(STRING),
            }
        }
        text += "\n";
    }
    let n_states: u64 = rows.iter().map(|row| row.n_states).sum();
    let n_bad: usize = rows.iter().map(|row| row.bad.len()).sum();
    let minutes = wall.as_secs_f64() / 60.0;
    writeln!(text, "\n{n_bad} bad of {n_states} states, {minutes:.1} minutes, {:.0} states a minute", n_states as f64 / minutes)
        .expect(STRING);
    for row in rows {
        for bad in &row.bad {
            writeln!(text, "\n--verb {} --fs {} --mode {} {bad}", row.verb, row.kind, row.mode).expect(STRING);
        }
    }
    text
}

const STRING: &str = "BUG: writing to a string failed";

/// Returns all rows with all that was found.
pub fn json(rows: &[Row]) -> Value {
    let bad = |bad: &Bad| json!({"at": bad.at, "call": bad.struck, "problems": bad.problems});
    let row = |row: &Row| {
        json!({
            "verb": row.verb, "mode": row.mode, "fs": row.kind, "calls": row.n_calls, "states": row.n_states,
            "seconds": row.seconds, "bad": row.bad.iter().map(bad).collect::<Vec<_>>(),
        })
    };
    rows.iter().map(row).collect()
}
