//! The one place that starts the commands of entries, handlers and checks: in the root that they are for, with nothing of our environment.
#![allow(clippy::disallowed_methods)]

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::output::Output;
use super::overlay::{FORBIDDEN, Overlay};
use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::metadata::Account;
use crate::process::Process;
use crate::repo::Places;

/// What the commands find programs by.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// So long a command that has to end is asked, before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// Lets a command wait for its word on standard input; who waits for one that does not come any more is told by the end of the pipe.
/// The shell leaves nothing of itself in the environment, and the variables up to `--` reach nobody before the last program that it leads to.
/// We may have raised our own limit of open files. What select(2) can watch is what programs are given where nobody says otherwise.
const GATE: &str = "read -r go && { ulimit -S -n 1024 2>/dev/null || :; } && cd \"$1\" && shift && unset PWD OLDPWD SHLVL && \
    while [ \"$1\" != -- ]; do export \"$1\"; shift; done && shift && exec \"$@\" </dev/null";
/// Goes where a command is to run, from the top of its root, where chroot leads, and does the same with variables.
const GO_THERE: &str = "cd \"$1\" && shift && unset PWD OLDPWD SHLVL && \
    while [ \"$1\" != -- ]; do export \"$1\"; shift; done && shift && exec \"$@\"";
/// Says a word when the processes of an overlay may begin, with a `proc` that shows them; then it takes in those that lose their parent.
const INIT: &str =
    r#"[ -z "$1" ] || "$2" -t proc -o ro,nosuid,nodev,noexec proc "$1" || exit; echo go; exec >/dev/null; until cat; do :; done"#;

/// Where commands run.
#[derive(Clone, Debug)]
pub struct Ground {
    root: PathBuf,
    /// Whether the root is that of a system: a path from `/` on begins there.
    is_system: bool,
    /// Where what they say goes.
    state: PathBuf,
    /// What they run in instead of the root.
    stage: Option<Stage>,
}

/// An overlay as a place to run in.
#[derive(Clone, Debug)]
struct Stage {
    root: PathBuf,
    /// The words that lead there.
    lead: Vec<OsString>,
}

/// What to run and how.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// Program and arguments.
    pub words: Vec<Vec<u8>>,
    /// Where, from the top of the root.
    pub cwd: &'a [u8],
    /// As whom; `None`: as whoever runs this.
    pub user: Option<&'a str>,
    /// Permissions that new files do not get.
    pub umask: u16,
    /// What it gets beside the usual environment, and no program on the way to it.
    pub env: Vec<(String, Vec<u8>)>,
    /// The entry that it is of, which it gets as `GIT_DEVOPS_ENTRY`.
    pub entry: Option<String>,
    /// How long it may take.
    pub timeout: Duration,
}

impl Job<'_> {
    /// Returns one that runs at the top of the root, for an hour at most.
    pub fn of(words: Vec<Vec<u8>>) -> Self {
        Self { words, cwd: b"/", user: None, umask: 0o022, env: Vec::new(), entry: None, timeout: Duration::from_secs(3600) }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It took too long and was killed.
    Timeout,
}

impl Ended {
    /// Returns how, as a person would say it.
    pub fn told(self) -> String {
        match self {
            Self::Code(code) => format!("exit code {code}"),
            Self::Signal(signal) => format!("killed by signal {signal}"),
            Self::Timeout => "took too long and was killed".to_owned(),
        }
    }
}

impl Ground {
    /// Returns that of an instance.
    pub fn of(places: &Places) -> Self {
        Self { root: places.work_tree.clone(), is_system: places.is_system(), state: places.state.clone(), stage: None }
    }

    /// Returns one whose commands run in `overlay`.
    pub(super) fn within(self, overlay: &Overlay) -> Result<Self> {
        let lead = vec![found("setpriv")?, "--bounding-set".into(), FORBIDDEN.into()];
        Ok(Self { stage: Some(Stage { root: overlay.root.clone(), lead }), ..self })
    }

    /// Returns how a command that runs here names the file at `path`, which lies in the root.
    pub fn inner(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.root) {
            Ok(inner) if self.is_system => Path::new("/").join(inner),
            _ => path.to_owned(),
        }
    }

    /// Runs a command to its end, and returns what it said.
    pub fn run(&self, job: &Job<'_>) -> Result<(Ended, Vec<u8>)> {
        self.prepare(job, Output::nameless(&self.state)?)?.go()
    }

    /// Starts a command in a session of its own as far as that it waits for a word: whoever is to know of it is told before it does anything.
    ///
    /// It has no terminal, and what it says goes to a file: it lives on when we are killed.
    pub fn prepare(&self, job: &Job<'_>, output: Output) -> Result<Waiting> {
        let home = job.user.map_or(Ok(b"/root".to_vec()), |user| self.home_of(user))?;
        let spawn = |first: &str| -> Result<std::io::Result<Child>> {
            let mut command = Command::new(program(first));
            match first {
                "sh" => command.process_group(0),
                _ => command.arg(program("sh")),
            };
            command.args(["-c", GATE, "sh"]);
            self.add_words(&mut command, job)?;
            command
                .env_clear()
                .env("PATH", PATH)
                .env("LANG", "C.UTF-8")
                .env("HOME", OsStr::from_bytes(&home))
                .envs(super::dpkg::ENVIRONMENT);
            command.envs(job.entry.iter().map(|id| ("GIT_DEVOPS_ENTRY", id)));
            command.stdin(Stdio::piped()).stdout(output.end()?).stderr(output.end()?);
            let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(job.umask.into()));
            // A command gets what a process usually has, whatever we do without.
            let has_none = rustix::thread::transparent_huge_pages_are_disabled().unwrap_or(false);
            let _ = rustix::thread::disable_transparent_huge_pages(false);
            let spawned = command.spawn();
            let _ = rustix::thread::disable_transparent_huge_pages(has_none);
            rustix::process::umask(umask);
            Ok(spawned)
        };
        let spawned = match spawn("setsid")? {
            // A small system without util-linux: at least a process group, by which all that it starts can be ended with it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => spawn("sh")?,
            spawned => spawned,
        };
        let child = spawned.context(|| "cannot start a command")?;
        let mut waiting = Waiting { child, output: Some(output), timeout: job.timeout, process: Process { id: 0, started: 0 } };
        waiting.process = Process::of(waiting.child.id())?;
        Ok(waiting)
    }

    /// Returns the home of a user of this root; `/` where nobody knows it.
    fn home_of(&self, user: &str) -> Result<Vec<u8>> {
        Ok(self.account(user)?.map_or(b"/".to_vec(), |account| account.home))
    }

    /// Returns what the root that `chroot --userspec` asks knows of a user.
    pub(super) fn account(&self, user: &str) -> Result<Option<Account>> {
        Account::find(if self.is_system { &self.root } else { Path::new("/") }, user)
    }

    /// Adds the words that lead to the root, the place and the user of a job, and then those of the job.
    fn add_words(&self, command: &mut Command, job: &Job<'_>) -> Result<()> {
        if job.words.is_empty() {
            return Err(Error::new(Kind::Bug, "BUG: a command without words"));
        }
        let relative = Path::new(OsStr::from_bytes(job.cwd.strip_prefix(b"/").unwrap_or(job.cwd)));
        let inner = if self.is_system { Path::new("/").join(relative) } else { self.root.join(relative) };
        let root = match &self.stage {
            Some(stage) => Some(&stage.root),
            None => Some(&self.root).filter(|root| self.is_system && *root != Path::new("/")),
        };
        let variable = |(name, value): &(String, Vec<u8>)| OsString::from_vec([name.as_bytes(), b"=", value].concat());
        let variables: Vec<OsString> = job.env.iter().map(variable).chain(["--".into()]).collect();
        command.current_dir("/");
        match root {
            Some(_) => command.args(["/", "--"]),
            None if job.user.is_some() => command.arg(&inner).arg("--"),
            None => command.arg(&inner).args(&variables),
        };
        command.args(self.stage.iter().flat_map(|stage| &stage.lead));
        if root.is_some() || job.user.is_some() {
            command.arg(program("chroot"));
            if let Some(user) = job.user {
                command.arg(format!("--userspec={user}"));
            }
            match root {
                Some(root) => command.arg(root),
                None => command.args(["--skip-chdir", "/"]),
            };
            if root.is_some() && inner != Path::new("/") || !job.env.is_empty() {
                let there = if root.is_some() { &*inner } else { Path::new(".") };
                command.args(["sh", "-c", GO_THERE, "sh"]).arg(there).args(&variables);
            }
        }
        command.args(job.words.iter().map(|word| OsStr::from_bytes(word)));
        Ok(())
    }
}

/// The first process of an overlay: those that lose their parent become its children, and all end with it, as it does with whoever holds this.
#[derive(Debug)]
pub(super) struct Init(Child);

impl Init {
    /// Starts it, as the next child of the thread that made `overlay`; what that starts from then on is one of its processes.
    pub fn start(overlay: &Overlay) -> Result<Self> {
        let proc = if overlay.wants_proc { overlay.root.join("proc") } else { PathBuf::new() };
        // When the thread is killed nobody would see any more what they do.
        let mut command = Command::new(found("setpriv")?);
        command.args(["--pdeathsig", "KILL"]).arg(found("sh")?).args(["-c", INIT, "sh"]).arg(proc).arg(found("mount")?);
        command.env_clear().env("PATH", PATH).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut init = Self(command.spawn().context(|| "no preview here: cannot start its first process")?);
        let mut said = Vec::new();
        if let Some(mut out) = init.0.stdout.take() {
            out.read_to_end(&mut said).context(|| "no preview here: cannot hear of its first process")?;
        }
        if said != b"go\n" {
            let mut complaint = Vec::new();
            let _ = init.0.stderr.take().map(|mut err| err.read_to_end(&mut complaint));
            let complaint = crate::child::told(&String::from_utf8_lossy(&complaint));
            return Err(Error::new(Kind::Unsupported, format!("no preview here: its processes cannot be shown: {complaint}")));
        }
        Ok(init)
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        // The kernel ends all the others before it tells of this one's end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that is started, and waits for a word; without that, it ends and did nothing.
#[derive(Debug)]
pub struct Waiting {
    child: Child,
    /// `None` once it has got the word.
    output: Option<Output>,
    timeout: Duration,
    process: Process,
}

impl Waiting {
    /// Returns who it is.
    pub fn process(&self) -> Process {
        self.process
    }

    /// Lets it run to its end, and returns what it said.
    pub fn go(mut self) -> Result<(Ended, Vec<u8>)> {
        let mut output = self.output.take().expect("BUG: it goes once");
        if let Some(mut word) = self.child.stdin.take() {
            // One that was killed meanwhile tells so by its end.
            let _ = word.write_all(b"go\n");
        }
        let ended = wait(&mut self.child, self.timeout, &mut output)?;
        Ok((ended, output.keep()?))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.output.is_some() {
            drop(self.child.stdin.take());
            let _ = self.child.wait();
        }
    }
}

/// Waits for the end of a command; one that takes too long is ended, with all that it started.
fn wait(child: &mut Child, timeout: Duration, output: &mut Output) -> Result<Ended> {
    let group = Pid::from_child(child);
    let end = Instant::now() + timeout;
    let mut kill_at = None;
    let mut pause = Duration::from_millis(1);
    loop {
        // It is reaped only after its group was killed: until then the number of the group can be no other's.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if waitid(WaitId::Pid(group), look).context(|| "cannot wait for a command")?.is_some() {
            if kill_at.is_some() {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let status = child.wait().context(|| "cannot wait for a command")?;
            return Ok(if kill_at.is_some() { Ended::Timeout } else { how(status) });
        }
        let now = Instant::now();
        match kill_at {
            None if now >= end => {
                let _ = kill_process_group(group, Signal::TERM);
                kill_at = Some(now + GRACE);
            }
            Some(at) if now >= at => drop(kill_process_group(group, Signal::KILL)),
            _ => (),
        }
        std::thread::sleep(pause);
        pause = if output.bound()? { Duration::from_millis(1) } else { (pause * 2).min(Duration::from_millis(50)) };
    }
}

/// Returns where a program lies that leads to a command, whose own environment says where that is found.
fn program(name: &str) -> PathBuf {
    let mut all = PATH.split(':').map(|dir| Path::new(dir).join(name));
    all.find(|path| durable::is_file(path)).unwrap_or_else(|| PathBuf::from(name))
}

/// Returns where a program lies that a preview cannot do without.
fn found(name: &str) -> Result<OsString> {
    match program(name) {
        path if path.is_absolute() => Ok(path.into_os_string()),
        _ => Err(Error::new(Kind::Unsupported, format!("no preview here: there is no '{name}'; install util-linux"))),
    }
}

fn how(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Code(code),
        (None, signal) => Ended::Signal(signal.unwrap_or_default()),
    }
}

/// Returns the id of this boot.
pub fn boot_id() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let id = durable::read(path).context(|| format!("cannot read '{}'", path.display()))?;
    Ok(String::from_utf8_lossy(&id).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(job: &Job<'_>) -> (Ended, Vec<u8>) {
        let state = tempfile::tempdir().unwrap();
        Ground { root: std::env::temp_dir(), is_system: false, state: state.path().to_owned(), stage: None }.run(job).unwrap()
    }

    fn sh(script: &str) -> Job<'static> {
        Job::of(["sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec())
    }

    #[test]
    fn a_command_gets_a_clean_environment_and_is_heard() {
        let job = Job { env: vec![("A".into(), b"1".to_vec())], umask: 0o027, ..sh("env | sort; umask; echo no >&2; exit 3") };
        let (ended, said) = run(&job);
        let said = String::from_utf8(said).unwrap();
        assert_eq!(ended, Ended::Code(3));
        let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("PWD=") && !line.starts_with("_=")).collect();
        let [frontend, force, ucf] = super::super::dpkg::ENVIRONMENT.map(|(name, value)| format!("{name}={value}"));
        let path = format!("PATH={PATH}");
        assert_eq!(lines, ["A=1", &frontend, &force, "HOME=/root", "LANG=C.UTF-8", &path, &ucf, "0027", "no"], "{said}");
    }

    #[test]
    fn where_its_programs_are_is_said_by_its_environment() {
        let words = ["/bin/sh", "-c", "echo $PATH; type ls"].map(|word| word.as_bytes().to_vec()).to_vec();
        let (ended, said) = run(&Job { env: vec![("PATH".into(), b"/none".to_vec())], ..Job::of(words) });
        assert_eq!((ended, &*said), (Ended::Code(127), &b"/none\nls: not found\n"[..]));
        let words = vec![b"ls".to_vec()];
        assert_eq!(run(&Job { env: vec![("PATH".into(), b"/none".to_vec())], ..Job::of(words) }).0, Ended::Code(127));
    }

    #[test]
    fn what_takes_too_long_is_killed_with_its_children() {
        let began = Instant::now();
        let job = Job { timeout: Duration::from_millis(200), ..sh("sleep 60 & sleep 60; echo never") };
        let (ended, said) = run(&job);
        assert_eq!((ended, said.len()), (Ended::Timeout, 0));
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_signal_is_told_from_a_code_and_a_daemon_is_not_waited_for() {
        assert_eq!(run(&sh("kill -9 $$")).0, Ended::Signal(9));
        assert_eq!(run(&Job::of(vec![b"/no/such/program".to_vec()])).0, Ended::Code(127));
        let began = Instant::now();
        assert_eq!(run(&sh("sleep 5 & echo started")), (Ended::Code(0), b"started\n".to_vec()));
        assert!(began.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn of_much_that_is_said_the_beginning_and_the_end_are_kept() {
        let (_, said) = run(&sh("echo begin; yes | head -c 3000000; echo end"));
        assert!(said.starts_with(b"begin\n") && said.ends_with(b"end\n") && said.len() < (2 << 19) + 100);
    }

    #[test]
    fn nothing_runs_without_its_word_and_nothing_has_a_terminal() {
        let state = tempfile::tempdir().unwrap();
        let ground = Ground { root: state.path().to_owned(), is_system: false, state: state.path().to_owned(), stage: None };
        let job = sh("touch made; ps -o sid= -p $$ | tr -d ' '; : > /dev/tty && echo terminal");
        drop(ground.prepare(&job, Output::create(state.path(), 1).unwrap()).unwrap());
        assert!(!state.path().join("made").exists());
        let waiting = ground.prepare(&job, Output::create(state.path(), 1).unwrap()).unwrap();
        let process = waiting.process();
        assert_eq!(process.living().unwrap(), [process.id]);
        let (_, said) = waiting.go().unwrap();
        assert!(state.path().join("made").exists());
        let said = String::from_utf8(said).unwrap();
        assert!(said.starts_with(&format!("{}\n", process.id)) && !said.contains("terminal"), "{said}");
        assert!(process.living().unwrap().is_empty());
    }
}
