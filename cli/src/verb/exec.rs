//! `gdo exec`, `gdo snap`, `gdo reboot`, `gdo ci`, `gdo abort` and `gdo handler`: changes that are made on this host first.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use git_devops::error::{Kind, Result};
use git_devops::host::Host;
use git_devops::host::origin::Executed;
use git_devops::host::preview::Preview;
use git_devops::journal::{DEFAULT_TIMEOUT, Entry, HandlerName, Kind as EntryKind, Name, When};
use git_devops::repo::Repo;
use git_devops::repo::status::only_staged;
use serde_json::{Value, json};

use super::changes::{letter, report, to_json};
use super::host::{call, halt_json, tell_halt};
use super::scan_args::{ScanArgs, check_paths, scope};
use crate::places::GlobalArgs;
use crate::ui::{Ui, json_path, shown, shown_path, usage};

/// Run a command, and journal it so that every host of this type runs it, once, in order
///
/// It runs here first; only if it succeeds it becomes part of the work in progress, with the owned files that it changed. No shell is involved: write
/// 'sh -c ...' for one. It gets a clean environment and empty input.
#[derive(clap::Args)]
pub struct ExecArgs {
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    words: Vec<OsString>,
    #[command(flatten)]
    how: How,
    /// A file that it reads, stored with it, as NAME or NAME=PATH; it finds it as '${in}/NAME'; may be given several times
    #[arg(long = "input", value_name = "FILE")]
    inputs: Vec<PathBuf>,
    /// Message of the commit
    #[arg(short, long)]
    message: Option<String>,
    /// Run it where all that it changes is thrown away, and say what that was
    ///
    /// What it does over the network is done. It finds no socket of a service in /run, cannot mount anything, and what it changes in /run and /dev is not told.
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// How a command runs.
#[derive(clap::Args)]
pub struct How {
    /// Run it before the files of its commit are laid down, on other hosts
    #[arg(long)]
    before: bool,
    /// Where, from the top of the root
    #[arg(long, value_name = "PATH", default_value = "/")]
    cwd: OsString,
    /// As whom
    #[arg(long)]
    user: Option<String>,
    /// An environment variable for it; may be given several times
    #[arg(long = "env", value_name = "NAME=VALUE")]
    env: Vec<OsString>,
    /// Needless if this command, which the shell runs, succeeds
    #[arg(long, value_name = "COMMAND")]
    unless: Option<OsString>,
    /// Needless if this command, which the shell runs, fails
    #[arg(long, value_name = "COMMAND")]
    onlyif: Option<OsString>,
    /// Needless if this is there
    #[arg(long, value_name = "PATH")]
    creates: Option<OsString>,
    /// It may be run again where nobody knows whether it ran
    #[arg(long)]
    idempotent: bool,
    /// How long it may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TIMEOUT)]
    timeout: u32,
    /// Exit codes that count as success
    #[arg(long, value_name = "CODE", value_delimiter = ',', default_value = "0")]
    ok: Vec<u8>,
    /// What takes it back: a command, which the shell runs
    #[arg(long, value_name = "COMMAND")]
    undo: Option<OsString>,
}

impl How {
    fn entry(&self, kind: EntryKind, words: &[OsString]) -> Result<Entry> {
        if let Some(word) = words.first().filter(|word| word.as_bytes().starts_with(b"-")) {
            let word = shown(word.as_bytes());
            return Err(usage(format!("there is no option '{word}'; nothing was run")));
        }
        let mut env = Vec::new();
        for variable in &self.env {
            let bytes = variable.as_bytes();
            let at = bytes.iter().position(|&b| b == b'=').ok_or_else(|| usage("--env takes NAME=VALUE"))?;
            let name = std::str::from_utf8(&bytes[..at]).map_err(|_| usage("the name of a variable is no text"))?;
            env.push((name.to_owned(), bytes[at + 1..].to_vec()));
        }
        env.sort();
        let mut ok = self.ok.clone();
        ok.sort_unstable();
        ok.dedup();
        Ok(Entry {
            when: if self.before { When::Before } else { When::After },
            cwd: self.cwd.as_bytes().to_vec(),
            user: self.user.clone(),
            env,
            unless: self.unless.as_ref().map(shell),
            onlyif: self.onlyif.as_ref().map(shell),
            creates: self.creates.as_ref().map(|path| path.as_bytes().to_vec()),
            is_idempotent: self.idempotent,
            timeout: self.timeout,
            ok,
            undo: self.undo.as_ref().map(shell),
            ..Entry::new(kind, words.iter().map(|word| word.as_bytes().to_vec()).collect())
        })
    }
}

/// Returns the words that let the shell run `command`, as it does with a line of a script.
fn shell(command: &OsString) -> Vec<Vec<u8>> {
    vec![b"sh".to_vec(), b"-c".to_vec(), command.as_bytes().to_vec()]
}

pub fn run_exec(ui: &mut Ui, global: &GlobalArgs, args: &ExecArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    let entry = args.how.entry(EntryKind::Exec, &args.words)?;
    let cwd = global.cwd()?;
    let mut inputs = args.inputs.iter().map(|input| input_of(input, &cwd)).collect::<Result<Vec<(Name, PathBuf)>>>()?;
    inputs.sort();
    let progress = ui.progress();
    progress.stage("running", 0, 0);
    if args.dry_run {
        let preview = Host::open(&repo, call(&repo))?.preview(entry, &inputs)?;
        return tell_preview(ui, &preview);
    }
    let done = Host::open(&repo, call(&repo))?.exec(entry, inputs, args.message.clone(), &progress)?;
    match done {
        Executed::Done { id, commit, changes, spared } => {
            ui.json(|| {
                json!({"entry": id.to_string(), "commit": commit.to_string(), "spared": spared, "halt": Value::Null,
                    "changed": changes.iter().map(|change| json_path(&change.path)).collect::<Value>()})
            })?;
            for change in &changes {
                ui.line(format_args!("changed {}", shown_path(&change.path)))?;
            }
            if let Some(guard) = spared {
                ui.note(format_args!("not run here: '--{guard}' says that it is not needed"))?;
            }
            ui.note(format_args!("entry {id} is in the work in progress; 'gdo ci' checks it in"))
        }
        Executed::Failed(halt) => {
            ui.json(|| json!({"entry": Value::Null, "halt": halt_json(Some(&halt))}))?;
            tell_halt(ui, &halt)
        }
    }
}

/// Says what a command would change.
fn tell_preview(ui: &mut Ui, preview: &Preview) -> Result<()> {
    ui.json(|| {
        json!({"spared": preview.spared, "halt": halt_json(preview.failed.as_ref()), "changes": to_json(&preview.changes),
            "read_only": preview.read_only.iter().map(|path| json_path(path)).collect::<Value>(),
            "output": String::from_utf8_lossy(&preview.said)})
    })?;
    for change in &preview.changes {
        ui.line(format_args!("{} {}", letter(change.what), shown_path(&change.path)))?;
    }
    for path in &preview.read_only {
        ui.note(format_args!("it could not write to '{}': nothing can cover what is mounted there", shown(path)))?;
    }
    if let Some(halt) = &preview.failed {
        return tell_halt(ui, halt);
    }
    match preview.spared {
        Some(guard) => ui.note(format_args!("not run: '--{guard}' says that it is not needed")),
        None => ui.note("that is what it would change; nothing was changed here, and nothing journalled"),
    }
}

fn input_of(input: &std::path::Path, cwd: &std::path::Path) -> Result<(Name, PathBuf)> {
    let bytes = input.as_os_str().as_bytes();
    let (name, path) = match bytes.iter().position(|&b| b == b'=') {
        Some(at) => (&bytes[..at], crate::places::as_path(&bytes[at + 1..])),
        None => (input.file_name().map(OsStrExt::as_bytes).unwrap_or_default(), input),
    };
    let name = std::str::from_utf8(name).map_err(|_| usage("the name of an input is no text"))?;
    Ok((name.parse()?, cwd.join(path)))
}

/// Take files as they are into the work in progress
#[derive(clap::Args)]
pub struct SnapArgs {
    /// The files and directories, owned from now on [default: everything that is owned]
    paths: Vec<PathBuf>,
    /// Message of the commit
    #[arg(short, long)]
    message: Option<String>,
    #[command(flatten)]
    scan: ScanArgs,
}

pub fn run_snap(ui: &mut Ui, global: &GlobalArgs, args: &SnapArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    let paths = global.work_paths(&repo.places, &args.paths)?;
    check_paths(&repo, &paths)?;
    let names: Vec<String> = args.paths.iter().map(|path| path.display().to_string()).collect();
    let message = args.message.clone().unwrap_or_else(|| format!("snap {}", names.join(" ")).trim().to_owned());
    let options = args.scan.options(&repo, scope(paths))?;
    let progress = ui.progress();
    progress.stage("snap", 0, 0);
    let recorded = Host::open(&repo, call(&repo))?.snap(&options, message, &progress)?;
    report(ui, &recorded, "stored")?;
    match recorded.commit {
        Some(_) => ui.note("it is in the work in progress; 'gdo ci' checks it in"),
        None => ui.note("nothing changed: no commit"),
    }
}

/// Journal a start of the machine, and start this one anew
///
/// Every host of this type starts anew at this place of the journal, and does what follows afterwards.
#[derive(clap::Args)]
pub struct RebootArgs {
    /// Message of the commit
    #[arg(short, long)]
    message: Option<String>,
    /// Leave the start of this machine to me
    #[arg(long)]
    later: bool,
}

pub fn run_reboot(ui: &mut Ui, global: &GlobalArgs, args: &RebootArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    let progress = ui.progress();
    let mut host = Host::open(&repo, call(&repo))?;
    let id = host.reboot(args.message.clone(), &progress)?;
    ui.json(|| json!({"entry": id.to_string()}))?;
    ui.note(format_args!("entry {id} is in the work in progress; 'gdo ci' waits until this machine was started anew"))?;
    if args.later { Ok(()) } else { host.start_anew() }
}

/// Check the work in progress in: it becomes the end of this type's branch
///
/// Other hosts get it with the next release ('gdo release').
#[derive(clap::Args)]
pub struct CiArgs {}

pub fn run_ci(ui: &mut Ui, global: &GlobalArgs, _: &CiArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    let tip = Host::open(&repo, call(&repo))?.check_in()?;
    let staged = only_staged(&repo)?;
    ui.json(|| json!({"commit": tip.to_string(), "staged": to_json(&staged)}))?;
    ui.note(format_args!("commit {tip}"))?;
    for change in &staged {
        ui.note(format_args!("only staged, and not in it: {} {}", letter(change.what), shown_path(&change.path)))?;
    }
    if staged.is_empty() { Ok(()) } else { ui.note("'gdo snap' takes that into another commit, for the next 'gdo ci'") }
}

/// Take the work in progress back: undo its commands, the last one first, and bring the files back
#[derive(clap::Args)]
pub struct AbortArgs {
    /// Bring back the files, also if commands cannot be undone
    #[arg(long)]
    content_only: bool,
}

pub fn run_abort(ui: &mut Ui, global: &GlobalArgs, args: &AbortArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    let progress = ui.progress();
    let mut host = Host::open(&repo, call(&repo))?;
    let left = host.abort(args.content_only, &progress)?;
    ui.json(|| json!({"not_undone": left}))?;
    for entry in &left {
        ui.line(format_args!("not undone: {entry}"))?;
    }
    ui.note("the work in progress is gone")
}

/// Say what runs after files with the attribute 'handler=NAME' were changed
#[derive(clap::Args)]
pub struct HandlerArgs {
    /// Its name
    name: Option<String>,
    /// The command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    words: Vec<OsString>,
    #[command(flatten)]
    how: How,
}

pub fn run_handler(ui: &mut Ui, global: &GlobalArgs, args: &HandlerArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    let Some(name) = &args.name else { return list_handlers(ui, &repo) };
    let name: HandlerName = name.parse()?;
    if args.words.is_empty() {
        return Err(usage("say what it is: 'gdo handler NAME -- COMMAND'"));
    }
    let handler = args.how.entry(EntryKind::Handler, &args.words)?;
    let progress = ui.progress();
    let commit = Host::open(&repo, call(&repo))?.set_handler(&name, &handler, &progress)?;
    ui.json(|| json!({"commit": commit.map(|commit| commit.to_string())}))?;
    match commit {
        Some(_) => ui.note("it is in the work in progress; 'gdo ci' checks it in"),
        None => ui.note("it is so already"),
    }
}

fn list_handlers(ui: &mut Ui, repo: &Repo) -> Result<()> {
    let handlers = git_devops::host::plan::handlers(repo, repo.source_tree(None)?)?;
    ui.json(|| handlers.iter().map(|(name, handler)| json!({"name": name, "run": handler.shown()})).collect())?;
    for (name, handler) in &handlers {
        ui.line(format_args!("{name}: {}", handler.shown()))?;
    }
    if handlers.is_empty() {
        Err(git_devops::error::Error::new(Kind::NotFound, "there are no handlers; 'gdo handler NAME -- COMMAND' makes one"))
    } else {
        Ok(())
    }
}
