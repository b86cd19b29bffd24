//! `gdo fleet`: how the hosts stand that report, as far as this repository has heard.

use git_devops::error::Result;
use git_devops::journal::Report;
use git_devops::repo::{Repo, branch, releases, remotes, reports};
use serde_json::{Value, json};

use super::proof::{find, hex};
use super::up::fetch;
use crate::exit;
use crate::places::{GlobalArgs, moment};
use crate::ui::{Ui, counted, shown};

/// Show how the hosts stand: what they applied, whether they halted, how far they are from that
///
/// Every host reports of itself, in a ref that travels with fetches; nobody logs into anybody. A report is as old as it says.
#[derive(clap::Args)]
pub struct FleetArgs {
    /// Show what is known here, and ask no other host
    #[arg(long)]
    offline: bool,
    /// Forget a host that is no more, by its name or the beginning of its id
    #[arg(long, value_name = "HOST")]
    forget: Option<String>,
    /// A host that has not reported for so many hours is silent
    #[arg(long, value_name = "HOURS", default_value_t = 26)]
    silent: u64,
    /// End with code 1 if any host is behind, halted, silent or not as applied
    #[arg(long)]
    exit_code: bool,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &FleetArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    if let Some(host) = &args.forget {
        let told = find(&repo, host)?;
        reports::forget(&repo, told.report.id())?;
        ui.json(|| json!({"forgotten": told.report.id().to_string()}))?;
        return ui.note(format_args!("forgot '{}'; it comes again from whoever still knows it", told.report.name));
    }
    if !args.offline && !remotes::list(&repo)?.is_empty() {
        fetch(ui, &repo)?;
    }
    let now = moment().wall;
    let mut rows = Vec::new();
    for told in reports::known(&repo)?.into_values() {
        let standing = standing(&repo, &told.report, now, args.silent)?;
        rows.push((told.report, standing));
    }
    rows.sort_by(|(a, _), (b, _)| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
    ui.json(|| rows.iter().map(|(report, standing)| to_json(report, standing)).collect())?;
    let header = ["HOST", "ID", "TYPE", "MODEL", "APPLIED", "RELEASE", "AGE", "STANDING"].map(str::to_owned);
    let mut table = vec![header];
    table.extend(rows.iter().map(|(report, standing)| {
        let short = |text: String, n: usize| text.chars().take(n).collect::<String>();
        [
            report.name.clone(),
            short(report.id().to_string(), 8),
            report.kind.clone(),
            report.model.clone(),
            report.applied.map_or("-".into(), |at| short(at.to_string(), 12)),
            report.release.map_or("-".into(), |seq| seq.to_string()),
            age(now.saturating_sub(report.issued)),
            if standing.is_empty() { "in step".into() } else { standing.join(", ") },
        ]
    }));
    let widths: Vec<usize> = (0..8).map(|at| table.iter().map(|row| row[at].len()).max().unwrap_or(0)).collect();
    for row in table.iter().filter(|_| !rows.is_empty()) {
        let line: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  ")).collect();
        ui.line(shown(line.trim_end().as_bytes()))?;
    }
    let n_off = rows.iter().filter(|(_, standing)| !standing.is_empty()).count();
    if args.exit_code && n_off > 0 {
        ui.exit_with(exit::DIFFERENCES);
    }
    match (rows.len(), n_off) {
        (0, _) => ui
            .note("no host has reported yet; 'gdo up' and 'gdo converge' report, 'gdo remote add' tells where to hear of others"),
        (n, 0) => ui.note(format_args!("{}, all in step", counted(n, "host"))),
        (n, off) => ui.note(format_args!("{}, {off} not in step", counted(n, "host"))),
    }
}

/// Returns all that is not as it should be.
fn standing(repo: &Repo, report: &Report, now: u64, silent: u64) -> Result<Vec<String>> {
    let mut standing = Vec::new();
    standing.extend(report.halted.as_ref().map(|why| format!("halted: {why}")));
    let accepted = report.kind.parse().ok().map(|kind| releases::accepted(repo, &kind)).transpose()?.flatten();
    let newest = match accepted {
        Some(accepted) => Some(accepted.commit),
        None => branch::full_name(&report.kind).ok().map(|full| repo.git.read_ref(&full)).transpose()?.flatten(),
    };
    if newest.is_some_and(|newest| report.applied != Some(newest)) {
        standing.push("behind".into());
    }
    if report.is_held {
        standing.push("held".into());
    }
    let counts = [(report.n_drift, "not as applied"), (report.n_owed, "handlers owed"), (report.n_skipped, "skipped")];
    standing.extend(counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
    if report.is_partial {
        standing.push("not all looked at".into());
    }
    if now.saturating_sub(report.issued) > silent.saturating_mul(3600) {
        standing.push("silent".into());
    }
    Ok(standing)
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn to_json(report: &Report, standing: &[String]) -> Value {
    json!({"name": report.name, "id": report.id().to_string(), "type": report.kind, "model": report.model,
        "applied": report.applied.map(|at| at.to_string()), "release": report.release, "issued": report.issued, "halted": report.halted,
        "held": report.is_held, "skipped": report.n_skipped, "handlers_owed": report.n_owed, "covered": report.n_covered,
        "drift": report.n_drift, "partial": report.is_partial, "fingerprint": hex(&report.fingerprint), "not_in_step": standing})
}
