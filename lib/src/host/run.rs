//! The one place that starts the commands of entries, handlers and checks: in the root that they are for, with nothing of our environment.
#![allow(clippy::disallowed_methods)]

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::repo::Places;

/// What the commands find programs by.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// So much of the beginning of what a command says is kept, in bytes, and as much of its end.
const HALF_OUTPUT: usize = 512 << 10;
/// So long a command that has to end is asked, before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// So long what a command said is waited for once it has ended: a daemon may have kept its output.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// So many pieces of what a command says wait to be kept; then it waits.
const MANY_WORDS: usize = 16;

/// Where commands run.
#[derive(Clone, Debug)]
pub struct Ground {
    root: PathBuf,
    /// Whether the root is that of a system: a path from `/` on begins there.
    is_system: bool,
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
    /// What it gets beside the usual environment.
    pub env: Vec<(String, Vec<u8>)>,
    /// How long it may take.
    pub timeout: Duration,
}

impl Job<'_> {
    /// Returns one that runs at the top of the root, for an hour at most.
    pub fn of(words: Vec<Vec<u8>>) -> Self {
        Self { words, cwd: b"/", user: None, umask: 0o022, env: Vec::new(), timeout: Duration::from_secs(3600) }
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
        Self { root: places.work_tree.clone(), is_system: places.is_system() }
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
        let (mut command, program) = self.command(job)?;
        command.env_clear().env("PATH", PATH).env("LANG", "C.UTF-8").env("HOME", "/root").envs(super::dpkg::ENVIRONMENT);
        command.envs(job.env.iter().map(|(name, value)| (name, OsStr::from_bytes(value))));
        let (mut output, input) = std::io::pipe().context(|| "cannot make a pipe")?;
        command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
        // So that all that it starts can be ended with it.
        command.process_group(0);
        let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(job.umask.into()));
        let spawned = command.spawn();
        rustix::process::umask(umask);
        // Our own ends of the pipe, or its end never comes.
        drop(command);
        let mut child = match spawned {
            // As the shell has it: not there, or not to be started. Nothing of it ran.
            Err(error) => {
                let code = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
                return Ok((Ended::Code(code), format!("cannot run '{program}': {error}\n").into_bytes()));
            }
            Ok(child) => child,
        };
        let (sender, said) = mpsc::sync_channel(MANY_WORDS);
        let listener = std::thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut heard = Heard::default();
        let ended = wait(&mut child, job.timeout, &said, &mut heard);
        let deadline = Instant::now() + LAST_WORDS;
        while let Ok(bytes) = said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            heard.take(&bytes);
        }
        drop((said, listener));
        Ok((ended?, heard.into_bytes()))
    }

    fn command(&self, job: &Job<'_>) -> Result<(Command, String)> {
        let words: Vec<OsString> = job.words.iter().cloned().map(OsString::from_vec).collect();
        let Some((program, arguments)) = words.split_first() else {
            return Err(Error::new(Kind::Bug, "BUG: a command without words"));
        };
        let shown = program.to_string_lossy().into_owned();
        let relative = Path::new(OsStr::from_bytes(job.cwd.strip_prefix(b"/").unwrap_or(job.cwd)));
        let is_elsewhere = self.is_system && self.root != Path::new("/");
        if !is_elsewhere && job.user.is_none() {
            let mut command = Command::new(program);
            command.args(arguments).current_dir(self.root.join(relative));
            return Ok((command, shown));
        }
        let mut command = Command::new("chroot");
        if let Some(user) = job.user {
            command.arg(format!("--userspec={user}"));
        }
        if is_elsewhere {
            command.arg(&self.root).current_dir("/");
            if job.cwd != b"/" {
                // chroot leads to the top of the root.
                command.args(["sh", "-c", "cd \"$1\" && shift && exec \"$@\"", "sh"]).arg(OsStr::from_bytes(job.cwd));
            }
        } else {
            command.args(["--skip-chdir", "/"]).current_dir(self.root.join(relative));
        }
        command.args(words);
        Ok((command, shown))
    }
}

/// Waits for the end of a command; one that takes too long is ended, with all that it started.
fn wait(child: &mut Child, timeout: Duration, said: &mpsc::Receiver<Vec<u8>>, heard: &mut Heard) -> Result<Ended> {
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
        match said.recv_timeout(pause) {
            Ok(bytes) => heard.take(&bytes),
            Err(mpsc::RecvTimeoutError::Timeout) => pause = (pause * 2).min(Duration::from_millis(50)),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
        }
    }
}

fn how(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Code(code),
        (None, signal) => Ended::Signal(signal.unwrap_or_default()),
    }
}

/// What a command said: the beginning and the end of it.
#[derive(Default)]
struct Heard {
    first: Vec<u8>,
    last: VecDeque<u8>,
    n_lost: u64,
}

impl Heard {
    fn take(&mut self, bytes: &[u8]) {
        let (first, rest) = bytes.split_at(bytes.len().min(HALF_OUTPUT - self.first.len()));
        self.first.extend_from_slice(first);
        self.last.extend(rest);
        let surplus = self.last.len().saturating_sub(HALF_OUTPUT);
        self.last.drain(..surplus);
        self.n_lost += surplus as u64;
    }

    fn into_bytes(mut self) -> Vec<u8> {
        if self.n_lost > 0 {
            self.first.extend(format!("\n[{} bytes left out]\n", self.n_lost).into_bytes());
        }
        self.first.extend(self.last);
        self.first
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

    fn ground() -> Ground {
        Ground { root: std::env::temp_dir(), is_system: false }
    }

    fn sh(script: &str) -> Job<'static> {
        Job::of(["sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec())
    }

    #[test]
    fn a_command_gets_a_clean_environment_and_is_heard() {
        let job = Job { env: vec![("A".into(), b"1".to_vec())], umask: 0o027, ..sh("env | sort; umask; echo no >&2; exit 3") };
        let (ended, said) = ground().run(&job).unwrap();
        let said = String::from_utf8(said).unwrap();
        assert_eq!(ended, Ended::Code(3));
        let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("PWD=") && !line.starts_with("_=")).collect();
        let [frontend, force, ucf] = super::super::dpkg::ENVIRONMENT.map(|(name, value)| format!("{name}={value}"));
        let path = format!("PATH={PATH}");
        assert_eq!(lines, ["A=1", &frontend, &force, "HOME=/root", "LANG=C.UTF-8", &path, &ucf, "0027", "no"], "{said}");
    }

    #[test]
    fn what_takes_too_long_is_killed_with_its_children() {
        let began = Instant::now();
        let job = Job { timeout: Duration::from_millis(200), ..sh("sleep 60 & sleep 60; echo never") };
        let (ended, said) = ground().run(&job).unwrap();
        assert_eq!((ended, said.len()), (Ended::Timeout, 0));
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_signal_is_told_from_a_code_and_a_daemon_is_not_waited_for() {
        assert_eq!(ground().run(&sh("kill -9 $$")).unwrap().0, Ended::Signal(9));
        assert_eq!(ground().run(&Job::of(vec![b"/no/such/program".to_vec()])).unwrap().0, Ended::Code(127));
        let began = Instant::now();
        assert_eq!(ground().run(&sh("sleep 5 & echo started")).unwrap(), (Ended::Code(0), b"started\n".to_vec()));
        assert!(began.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn of_much_that_is_said_the_beginning_and_the_end_are_kept() {
        let (_, said) = ground().run(&sh("echo begin; yes | head -c 3000000; echo end")).unwrap();
        assert!(said.starts_with(b"begin\n") && said.ends_with(b"end\n") && said.len() < 2 * HALF_OUTPUT + 100);
    }
}
