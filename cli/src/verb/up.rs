//! `gdo up`, `gdo resume`, `gdo skip`, `gdo hold` and `gdo unhold`: this host follows its type.

use std::path::PathBuf;
use std::sync::Arc;

use git_devops::error::{Error, Kind, Result};
use git_devops::git::Oid;
use git_devops::host::rendering::Rendering;
use git_devops::host::replay::{self, Event, Replayed, UpOptions};
use git_devops::host::{Host, plan, supply};
use git_devops::repo::{Policy, Repo, next, releases, remotes};
use serde_json::{Value, json};

use super::fetch::{fetch_all, finish, repo_within_reach};
use super::host::{call, halt_json, report, tell_halt};
use super::rollback::is_held;
use super::trial;
use crate::places::GlobalArgs;
use crate::ui::{Ui, counted, shown, shown_path};

/// Bring this host to the newest release of its type, change by change, in order
///
/// Gets everything first, then applies commit by commit: files, commands, handlers. What does not work halts it, and says what goes on from there; what
/// is done is never done twice.
#[derive(clap::Args)]
pub struct UpArgs {
    /// Tell what would be done, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// The machine may be started anew where the journal says so
    #[arg(short = 'r', long)]
    reboot: bool,
    /// Only as far as this commit; without a trusted key, also as far as it
    #[arg(long, value_name = "REV")]
    to: Option<String>,
    /// Ask no other host: what is needed is here
    #[arg(long)]
    offline: bool,
    /// So many removals in one commit are meant
    #[arg(long, value_name = "N", default_value_t = 0)]
    yes_delete: usize,
    /// Where PATH is not as applied last, take what the release has; what lies there is kept, as by 'gdo fix'; may be given several times
    #[arg(long, value_name = "PATH", conflicts_with = "dry_run")]
    theirs: Vec<PathBuf>,
    /// Go back by yourself unless 'gdo confirm' is said within so many seconds after it
    #[arg(long = "try", value_name = "SECONDS", conflicts_with = "dry_run", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    trial: Option<u64>,
    /// Go back in the files alone, where commands cannot be undone
    #[arg(long, requires = "trial")]
    content_only: bool,
    /// Do the work of a trial
    #[arg(long, hide = true, requires = "trial")]
    detached: bool,
}

pub fn run_up(ui: &mut Ui, global: &GlobalArgs, args: &UpArgs) -> Result<()> {
    let repo = if args.offline { global.repo()? } else { repo_within_reach(global, true)? };
    if args.trial.is_some() && !args.detached {
        return trial::attend(ui, &repo);
    }
    if !args.dry_run && args.trial.is_none() {
        trial::end_lost(ui, &repo)?;
    }
    if !args.offline {
        fetch(ui, &repo)?;
    }
    let mut host = Host::open(&repo, call(&repo))?;
    let target = target(&host, args.to.as_deref())?;
    if let Some(hold) = held(&mut host, (args.to.as_deref(), target), args.dry_run)? {
        ui.json(|| json!({"target": target.to_string(), "applied": [], "held": hold, "halt": Value::Null}))?;
        return ui.note(HELD);
    }
    drop(host);
    if !args.theirs.is_empty() && !super::fix::bring_back(ui, global, &args.theirs)? {
        return Ok(());
    }
    let options = UpOptions { dry_run: args.dry_run, may_reboot: args.reboot, yes_delete: args.yes_delete };
    match args.trial {
        Some(seconds) => {
            let apply = |ui: &mut Ui| lead_to(ui, repo, target, &options, args.offline);
            trial::run(ui, global, (target, seconds, args.content_only), apply)
        }
        None => lead_to(ui, repo, target, &options, args.offline),
    }
}

/// What a host says that is held.
pub const HELD: &str = "held: nothing is applied until a newer release; 'gdo unhold' lifts that";

/// Returns the hold that keeps this host from `target`, which nobody asked for by name; one that a newer release ends is lifted, but not by a dry run.
pub fn held(host: &mut Host<'_>, (asked, target): (Option<&str>, Oid), dry_run: bool) -> Result<Option<String>> {
    let is_made_here = next::tip(host.repo)? == Some(target);
    let Some(hold) = host.history().hold.clone().filter(|_| asked.is_none() && !is_made_here) else { return Ok(None) };
    let accepted = releases::accepted(host.repo, &host.kind()?.parse()?)?;
    if accepted.is_none_or(|accepted| is_held(&hold, accepted.epoch.into(), accepted.seq)) {
        return Ok(Some(hold));
    }
    if !dry_run {
        host.unhold()?;
    }
    Ok(None)
}

/// Brings what is missing here, and replays what leads to `target`.
pub fn lead_to(ui: &mut Ui, mut repo: Repo, target: Oid, options: &UpOptions, offline: bool) -> Result<()> {
    // Environmental data is always that of the newest commit that this host is to have.
    repo.laying = Arc::new(Rendering::of_tree(&repo, &repo.objects.commit(&target)?.tree)?);
    let mut host = Host::open(&repo, call(&repo))?;
    if !offline && !options.dry_run {
        get(ui, &host, target)?;
    }
    replay(ui, &mut host, target, options)?;
    if !options.dry_run {
        report(ui, &host);
    }
    finish(&repo);
    Ok(())
}

/// Brings commits and releases from all remotes.
pub fn fetch(ui: &mut Ui, repo: &Repo) -> Result<()> {
    let all = remotes::list(repo)?;
    if all.is_empty() {
        return Ok(());
    }
    let hosts = super::fetch::connect(ui, repo, &all);
    fetch_all(ui, repo, &hosts);
    Ok(())
}

/// Brings the chunks of all commits on the way, from all hosts at once; what is missing then is named by the replay.
fn get(ui: &mut Ui, host: &Host<'_>, target: Oid) -> Result<()> {
    let repo = host.repo;
    let head = repo.head()?;
    let needs = plan::line_to(repo, head, target)?.map_or(Ok(Vec::new()), |line| supply::needs(repo, head, &line))?;
    let all = remotes::list(repo)?;
    if needs.is_empty() || all.is_empty() || repo.settings.policy == Policy::None {
        return Ok(());
    }
    let mut hosts = super::fetch::connect(ui, repo, &all);
    let progress = ui.progress();
    progress.stage("getting chunks", 0, 0);
    for need in needs.iter().filter(|need| !need.paths.is_empty()) {
        let got = remotes::get(repo, need.tree, &need.paths, &mut hosts, &progress)?;
        super::fetch::tell_failures(&got);
    }
    Ok(())
}

/// Returns the commit that this host is to have.
pub fn target(host: &Host<'_>, to: Option<&str>) -> Result<Oid> {
    let repo = host.repo;
    let kind = host.kind()?;
    if let (None, Some(next)) = (to, next::tip(repo)?) {
        return Ok(next);
    }
    let asked = to.map(|rev| repo.git.resolve(rev)).transpose()?;
    let is_trusting = releases::trust(repo)?.is_some();
    if !is_trusting {
        return asked.ok_or_else(|| {
            let message = "no key is trusted here, so no release says what this host is to have; 'gdo trust init' begins with a key, \
                           'gdo up --to REV' goes to a commit";
            Error::new(Kind::Usage, message)
        });
    }
    let accepted = releases::accepted(repo, &kind.parse()?)?;
    let Some(accepted) = accepted else {
        let message = format!(
            "no release of type '{kind}' was accepted here yet; 'gdo fetch' gets them, 'gdo verify' says why one is not accepted"
        );
        return Err(Error::new(Kind::NotFound, message));
    };
    let Some(asked) = asked else { return Ok(accepted.commit) };
    match plan::line_to(repo, Some(asked), accepted.commit)? {
        Some(_) => Ok(asked),
        None => Err(Error::new(Kind::Refused, format!("commit {asked} is not on the way to the release that is accepted here"))),
    }
}

fn replay(ui: &mut Ui, host: &mut Host<'_>, target: Oid, options: &UpOptions) -> Result<()> {
    let progress = ui.progress();
    progress.stage("applying", 0, 0);
    let dry_run = options.dry_run;
    let mut steps: Vec<Value> = Vec::new();
    let replayed = replay::up(host, target, options, &progress, &mut |event| tell(ui, dry_run, event, &mut steps))?;
    let Replayed { applied, halt } = replayed;
    ui.json(|| {
        json!({"target": target.to_string(), "applied": applied.iter().map(ToString::to_string).collect::<Vec<_>>(), "dry_run": dry_run,
            "steps": steps, "halt": halt_json(halt.as_ref())})
    })?;
    match (applied.len(), dry_run) {
        (0, _) if halt.is_none() => ui.note("up to date")?,
        (0, _) => (),
        (n, true) => ui.note(format_args!("would apply {}", counted(n, "commit")))?,
        (n, false) => ui.note(format_args!("applied {}", counted(n, "commit")))?,
    }
    halt.map_or(Ok(()), |halt| tell_halt(ui, &halt))
}

fn tell(ui: &mut Ui, dry_run: bool, event: Event<'_>, steps: &mut Vec<Value>) -> Result<()> {
    match event {
        Event::Commit(plan) => {
            steps.push(json!({"commit": plan.commit.to_string(), "files": plan.changes.len(), "entries": plan.entries.len(), "handlers": plan.handlers}));
            ui.line(format_args!("commit {}", plan.commit))?;
            if dry_run {
                for change in &plan.changes {
                    ui.line(format_args!("  {} {}", super::changes::letter(change.what), shown_path(&change.path)))?;
                }
                for (id, entry) in &plan.entries {
                    ui.line(format_args!("  run {id} {}", entry.shown()))?;
                }
                for name in &plan.handlers {
                    ui.line(format_args!("  handler {name}"))?;
                }
            }
            Ok(())
        }
        Event::Entry(id, entry) => {
            steps.push(json!({"run": id.to_string()}));
            ui.line(format_args!("  run {id} {}", entry.shown()))
        }
        Event::Spared(id, entry) => {
            steps.push(json!({"spared": id.to_string()}));
            ui.line(format_args!("  not needed {id} {}", entry.shown()))
        }
        Event::Rendered(path) => {
            steps.push(json!({"rendered": crate::ui::json_path(path)}));
            ui.line(format_args!("rendered {}", shown_path(path)))
        }
        Event::Unsettled(packages) => {
            steps.push(json!({"unsettled": packages}));
            packages
                .iter()
                .try_for_each(|package| ui.line(format_args!("package not installed in full: {}", shown(package.as_bytes()))))
        }
        Event::Handler(name, handler) => {
            steps.push(json!({"handler": name}));
            ui.line(format_args!("  handler {name}: {}", handler.shown()))
        }
    }
}

/// Go on after a command that failed or was interrupted
#[derive(clap::Args)]
pub struct ResumeArgs {
    /// Run it again [default for one that failed]
    #[arg(long, conflicts_with = "done")]
    rerun: bool,
    /// Take it for done
    #[arg(long)]
    done: bool,
    /// The machine may be started anew where the journal says so
    #[arg(short = 'r', long)]
    reboot: bool,
}

pub fn run_resume(ui: &mut Ui, global: &GlobalArgs, args: &ResumeArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    let mut host = Host::open(&repo, call(&repo))?;
    let id = host.history().stuck().cloned();
    let is_unknown = id
        .as_ref()
        .is_some_and(|id| !matches!(host.history().entry(id), Some(git_devops::host::history::Progress::Failed { .. })));
    if is_unknown && !args.rerun && !args.done {
        return Err(crate::ui::usage("nobody knows how far the command came; say '--rerun' or '--done'"));
    }
    let id = host.decide(args.done)?;
    ui.note(format_args!("entry {id} {}", if args.done { "counts as done" } else { "is run again" }))?;
    drop(host);
    go_on(ui, repo, args.reboot)
}

/// Goes on with the commit that is half applied, and what follows it.
fn go_on(ui: &mut Ui, repo: Repo, may_reboot: bool) -> Result<()> {
    let host = Host::open(&repo, call(&repo))?;
    if let Some(backing) = host.history().backing {
        ui.note(format_args!("a rollback to commit {} was interrupted; 'gdo rollback' goes on with it", backing.to))?;
    }
    match host.history().pending.as_ref().map(|pending| pending.target) {
        Some(target) => {
            drop(host);
            lead_to(ui, repo, target, &UpOptions { may_reboot, ..UpOptions::default() }, true)
        }
        None => {
            report(ui, &host);
            Ok(())
        }
    }
}

/// Go on without a command; this host is then no more like the others, and says so
#[derive(clap::Args)]
pub struct SkipArgs {
    /// The entry
    entry: String,
    /// Why
    #[arg(long)]
    reason: String,
}

pub fn run_skip(ui: &mut Ui, global: &GlobalArgs, args: &SkipArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    let mut host = Host::open(&repo, call(&repo))?;
    host.skip(&args.entry.parse()?, &args.reason)?;
    ui.note("this host is no more like the others of its type, until it is installed anew")?;
    drop(host);
    go_on(ui, repo, false)
}
