//! `gdo schedule`: lets this machine follow its type by itself.

use std::path::Path;

use git_devops::durable;
use git_devops::error::{Context, Error, Kind, Result};
use git_devops::host::{self, Model};
use git_devops::repo::Repo;
use serde_json::{Value, json};

use crate::places::GlobalArgs;
use crate::ui::{Ui, usage};

/// Let this machine follow its type by itself: a systemd service with a timer, or a line for cron
///
/// Each run waits up to the jitter first, so that a fleet does not ask all at once. The timer also runs after each start of the machine, which goes on
/// with what a reboot interrupted. Nothing is written but these files.
#[derive(clap::Args)]
pub struct ScheduleArgs {
    /// Minutes from one run to the next
    #[arg(long, value_name = "MINUTES", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_080))]
    every: u32,
    /// Minutes that a run may wait at first
    #[arg(long, value_name = "MINUTES", default_value_t = 15, value_parser = clap::value_parser!(u32).range(0..=1440))]
    jitter: u32,
    /// The machine may be started anew where the journal says so
    #[arg(short = 'r', long)]
    reboot: bool,
    /// Write a line for cron instead
    #[arg(long)]
    cron: bool,
    /// Remove what this verb has written
    #[arg(long)]
    remove: bool,
    /// Show what would be written, and write nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
}

const SERVICE: &str = "etc/systemd/system/gdo-up.service";
const TIMER: &str = "etc/systemd/system/gdo-up.timer";
/// What 'systemctl enable' would make.
const WANTED: &str = "etc/systemd/system/timers.target.wants/gdo-up.timer";
const CRON: &str = "etc/cron.d/gdo-up";
/// The first line of what is ours to replace.
const MARK: &str = "# written by 'gdo schedule', which replaces it";

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &ScheduleArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    if !repo.places.is_system() {
        return Err(usage("this is for a system instance: 'gdo --root / schedule'"));
    }
    let root = &repo.places.work_tree;
    if args.remove {
        return remove(ui, root, args.dry_run);
    }
    let command = command(&repo, args)?;
    let files = if args.cron { vec![(CRON, cron(args, &command))] } else { units(args, &command) };
    for (path, text) in &files {
        let path = root.join(path);
        let there = durable::read_if_there(&path).context(|| format!("cannot read '{}'", path.display()))?;
        if there.is_some_and(|there| !there.starts_with(MARK.as_bytes())) {
            let message = format!("'{}' is there and was not written by this verb; move it away first", path.display());
            return Err(Error::new(Kind::Conflict, message));
        }
        if args.dry_run {
            ui.line(format_args!("{}:\n{text}", path.display()))?;
        } else {
            durable::create_dir_all(path.parent().unwrap_or(root), 0o755)?;
            durable::publish(&path, text.as_bytes(), 0o644)?;
        }
    }
    ui.json(
        || json!({"files": files.iter().map(|(path, _)| json!(format!("/{path}"))).collect::<Value>(), "dry_run": args.dry_run}),
    )?;
    if args.dry_run {
        return Ok(());
    }
    files.iter().try_for_each(|(path, _)| ui.note(format_args!("wrote '{}'", root.join(path).display())))?;
    match args.cron {
        true => ui.note("cron takes it from there"),
        false => {
            enable(root)?;
            ui.note("it begins with the next start of the machine; 'systemctl daemon-reload && systemctl start gdo-up.timer' begins now")
        }
    }
}

/// Returns what is run: what the model of this host asks for.
fn command(repo: &Repo, args: &ScheduleArgs) -> Result<String> {
    let program = std::env::current_exe().context(|| "cannot tell where this program is")?;
    let program = program.to_str().filter(|path| !path.contains(|c: char| c.is_whitespace() || "%$\"'\\".contains(c)));
    let program = program.ok_or_else(|| {
        usage("the path of this program has characters that systemd and cron read otherwise; install it in '/usr/local/bin'")
    })?;
    let model = host::history(&repo.places.state)?.begun.map(|begun| begun.model);
    let verb = if model == Some(Model::Convergent) { "converge" } else { "up" };
    let reboot = if args.reboot && verb == "up" { " --reboot" } else { "" };
    Ok(format!("{program} --root / {verb} --quiet{reboot}"))
}

fn units(args: &ScheduleArgs, command: &str) -> Vec<(&'static str, String)> {
    let ScheduleArgs { every, jitter, .. } = args;
    let service = format!(
        "{MARK}\n[Unit]\nDescription=git-devops: bring this machine to its release\nDocumentation=man:gdo-up(1)\nWants=network-online.target\n\
         After=network-online.target\n\n[Service]\nType=oneshot\nExecStart={command}\n# Whatever its commands started goes on.\nKillMode=process\n\
         # A machine that waits for its next start is no failure; one that halted is, so that 'systemctl --failed' names it.\nSuccessExitStatus=13\n"
    );
    let timer = format!(
        "{MARK}\n[Unit]\nDescription=git-devops: look for releases\n\n[Timer]\nOnBootSec=2min\nOnUnitActiveSec={every}min\n\
         RandomizedDelaySec={jitter}min\n\n[Install]\nWantedBy=timers.target\n"
    );
    vec![(SERVICE, service), (TIMER, timer)]
}

fn cron(args: &ScheduleArgs, command: &str) -> String {
    let ScheduleArgs { every, jitter, .. } = args;
    // cron knows minutes of an hour, hours of a day, and days: the next one that is not rarer.
    let when = match every {
        0..60 => format!("*/{every} * * * *"),
        60..1440 => format!("17 */{} * * *", every / 60),
        _ => format!("17 3 */{} * *", every / 1440),
    };
    let wait = if *jitter == 0 { String::new() } else { format!("sleep $(shuf -i 0-{} -n 1); ", jitter * 60) };
    format!(
        "{MARK}\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n@reboot root sleep 120; {command}\n{when} root {wait}{command}\n"
    )
}

fn enable(root: &Path) -> Result<()> {
    let link = root.join(WANTED);
    if durable::is_there(&link) {
        return Ok(());
    }
    let what = || format!("cannot enable the timer: '{}'", link.display());
    durable::create_dir_all(link.parent().unwrap_or(root), 0o755).context(what)?;
    std::os::unix::fs::symlink("../gdo-up.timer", &link).context(what)?;
    durable::sync_dir(link.parent().unwrap_or(root))
}

fn remove(ui: &mut Ui, root: &Path, dry_run: bool) -> Result<()> {
    let mut gone = Vec::new();
    for path in [WANTED, TIMER, SERVICE, CRON] {
        let full = root.join(path);
        let is_link = path == WANTED;
        let is_ours = is_link && std::fs::read_link(&full).is_ok_and(|to| to == Path::new("../gdo-up.timer"))
            || !is_link && durable::read_if_there(&full).ok().flatten().is_some_and(|text| text.starts_with(MARK.as_bytes()));
        if is_ours {
            if !dry_run {
                durable::remove(&full)?;
            }
            gone.push(full);
        }
    }
    ui.json(|| json!({"removed": gone.iter().map(|path| path.display().to_string()).collect::<Value>(), "dry_run": dry_run}))?;
    if gone.is_empty() {
        return Err(Error::new(Kind::NotFound, "this verb has written nothing here"));
    }
    let word = if dry_run { "would remove" } else { "removed" };
    gone.iter().try_for_each(|path| ui.note(format_args!("{word} '{}'", path.display())))
}
