//! What the verbs that change hosts share: who calls, and how a halt is told.

use std::io::Write;

use git_devops::error::Result;
use git_devops::host::{Call, Halt, Host};
use git_devops::repo::Repo;
use serde_json::{Value, json};

use super::commit::identity;
use crate::exit;
use crate::places::{hostname, moment};
use crate::ui::{Ui, complain, shown};

/// Returns who calls, now.
pub fn call(repo: &Repo) -> Call {
    let user = std::env::var("USER").ok().filter(|user| !user.is_empty()).unwrap_or_else(|| "root".to_owned());
    let offset = jiff::Zoned::now().offset().seconds() / 60;
    Call { now: moment().wall, offset, identity: identity(repo), by: format!("{user}@{}", hostname()) }
}

/// Returns what this host calls itself to others: `devops.name`, or its host name.
pub fn name(repo: &Repo) -> String {
    let named = repo.config.get("devops.name").map(|name| String::from_utf8_lossy(name).into_owned());
    named.unwrap_or_else(hostname)
}

/// Tells others what this host is like now. What was done stands, whether that works or not.
pub fn report(ui: &mut Ui, host: &Host<'_>) {
    let progress = ui.progress();
    progress.stage("reporting", 0, 0);
    if let Err(error) = host.report(&name(host.repo), &progress) {
        complain(format_args!("warning: cannot report what this host is like: {error:#}"));
    }
    ui.warnings();
}

/// Says where and why it stopped, and what goes on from there.
pub fn tell_halt(ui: &mut Ui, halt: &Halt) -> Result<()> {
    ui.exit_with(if halt.why.id() == "reboot" { exit::REBOOT } else { exit::HALTED });
    // What was done stands before what was not.
    let _ = ui.raw().flush();
    complain(format_args!("halted: {}: {}", halt.why.id(), shown(halt.what.as_bytes())));
    halt.details.iter().for_each(|line| complain(format_args!("  {}", shown(line.as_bytes()))));
    let width = halt.ways.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    for (command, effect) in &halt.ways {
        complain(format_args!("  {command:width$}  {effect}"));
    }
    Ok(())
}

/// Returns the same for a program.
pub fn halt_json(halt: Option<&Halt>) -> Value {
    let way = |(command, effect): &(String, &str)| json!({"command": command, "effect": effect});
    halt.map_or(Value::Null, |halt| {
        json!({"why": halt.why.id(), "what": halt.what, "details": halt.details, "ways": halt.ways.iter().map(way).collect::<Value>()})
    })
}
