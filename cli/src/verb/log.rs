//! `gdo log`

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use git_devops::error::{Context, Result};
use git_devops::host::output;
use git_devops::journal::{HostLog, Line};
use git_devops::repo::Repo;
use git_devops::repo::diff::stored_paths;
use serde_json::{Value, json};

use super::git::{for_people, hand_over};
use crate::places::GlobalArgs;
use crate::ui::{Ui, shown};

/// Show the commits, the newest first
///
/// Paths follow after '--'.
#[derive(clap::Args)]
pub struct LogArgs {
    /// Where to begin [default: HEAD]
    #[arg(value_name = "REV")]
    rev: Option<String>,
    /// Only commits that changed these files and directories, in content or metadata
    #[arg(last = true)]
    paths: Vec<PathBuf>,
    /// At most N commits
    #[arg(short = 'n', long, value_name = "N")]
    max_count: Option<u32>,
    /// One line for each commit
    #[arg(long)]
    oneline: bool,
    /// Name the paths that each commit changed
    #[arg(long)]
    name_status: bool,
    /// Show what was done on this host instead: commits, commands and their outcome
    #[arg(long, conflicts_with_all = ["oneline", "name_status", "rev", "paths"])]
    host: bool,
    /// Show what the command said that has this number in the log of this host
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["oneline", "name_status", "rev", "paths", "host"])]
    output: Option<u64>,
}

/// Prints the log of this host, the newest line first.
fn of_host(ui: &mut Ui, repo: &Repo, max_count: Option<u32>) -> Result<()> {
    let log = HostLog::open(&repo.places.state)?;
    let lines: Vec<&Line> = log.lines().iter().rev().take(max_count.map_or(usize::MAX, |n| n as usize)).collect();
    let fields = |line: &Line| line.fields.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect();
    ui.json(|| {
        let line = |line: &&Line| json!({"number": line.sequence, "time": line.time, "kind": line.kind, "fields": Value::Object(fields(line))});
        lines.iter().map(line).collect()
    })?;
    for line in lines {
        let time =
            jiff::Timestamp::from_second(line.time.try_into().unwrap_or(0)).map(|time| time.to_string()).unwrap_or_default();
        let fields: Vec<String> = line.fields.iter().map(|(key, value)| format!("{key}={}", shown(value.as_bytes()))).collect();
        ui.line(format_args!("{} {time} {} {}", line.sequence, line.kind, fields.join(" ")))?;
    }
    Ok(())
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &LogArgs) -> Result<()> {
    let repo = global.repo()?;
    if args.host {
        return of_host(ui, &repo, args.max_count);
    }
    if let Some(sequence) = args.output {
        let said = output(&repo.places.state, sequence)?;
        return ui.raw().write_all(&said).context(|| "cannot write to standard output");
    }
    let paths = global.work_paths(&repo.places, &args.paths)?;
    let mut command: Vec<OsString> = for_people(&["log", "--no-show-signature"]);
    if let Some(n) = args.max_count {
        command.push(format!("--max-count={n}").into());
    }
    let flags = [
        (args.oneline, "--oneline"),
        (args.name_status, "--name-status"),
        (ui.is_json(), "--format=%H%x00%an%x00%ae%x00%at%x00%B%x00"),
    ];
    command.extend(flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| OsString::from(flag)));
    if ui.is_json() {
        command.push("-z".into());
    }
    // Resolved first, so that no revision is taken for an option, and a mistake gets our message.
    let rev = args.rev.as_deref().unwrap_or("HEAD");
    let oid = repo.git.resolve(rev).map_err(|error| global.or_path(&repo, "gdo log", &[rev.to_owned()], error))?;
    command.push(oid.to_string().into());
    command.push("--".into());
    command.extend(stored_paths(&paths));
    if !ui.is_json() {
        return hand_over(ui, &repo, &command);
    }
    let output = repo.git.run(&command)?;
    ui.json(|| commits(&output))
}

fn commits(output: &[u8]) -> Value {
    let text = String::from_utf8_lossy(output);
    let fields: Vec<&str> = text.split('\0').collect();
    let commit = |fields: &[&str]| {
        json!({
            "commit": fields[0].trim_start(), "author": fields[1], "email": fields[2],
            "time": fields[3].parse::<i64>().unwrap_or_default(), "message": fields[4],
        })
    };
    // Five fields, and the separator between two commits makes a sixth, empty one.
    fields.chunks(6).filter(|fields| fields.len() >= 5).map(commit).collect()
}
