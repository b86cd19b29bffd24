//! The sshd by which the tour's second host pulls from the first: run by whoever takes the tour, on the loopback, with keys made for it alone.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A sshd that lets in one key for one command. It ends when dropped.
pub struct Sshd {
    child: Child,
    dir: PathBuf,
    port: u16,
    user: String,
    /// Whether we made the directory without which root's sshd does not start.
    made_run: bool,
}

const RUN: &str = "/run/sshd";
/// How long it may take to start.
const START: Duration = Duration::from_secs(5);
/// In the directory of a sshd: its process id.
const PID: &str = "sshd.pid";

impl Sshd {
    /// Starts one in the directory `dir`, which it needs for itself, and tries that it answers. `authorize` returns the line of authorized_keys for
    /// the file with a public key. What keeps it from working here is the error, for a person.
    pub fn start(dir: &Path, authorize: impl FnOnce(&Path) -> Result<String, String>) -> Result<Self, String> {
        let program = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/sbin/sshd"].into_iter().find(|path| Path::new(path).is_file());
        let program = program.ok_or("no sshd is installed")?;
        let user = said(Command::new("id").arg("-un"))?;
        std::fs::create_dir_all(dir).map_err(|error| error.to_string())?;
        for name in ["host_key", "key"] {
            said(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(name)))?;
        }
        let line = authorize(&dir.join("key.pub"))?;
        std::fs::write(dir.join("authorized_keys"), line).map_err(|error| error.to_string())?;
        let is_root = rustix::process::geteuid().is_root();
        let made_run = is_root && std::fs::create_dir(RUN).is_ok();
        let (child, port) = run(program, dir)?;
        let sshd = Self { child, dir: dir.to_owned(), port, user, made_run };
        sshd.try_it()?;
        Ok(sshd)
    }

    /// Returns where it answers.
    pub fn address(&self) -> String {
        format!("ssh://{}@127.0.0.1:{}", self.user, self.port)
    }

    /// Returns the file with its host key.
    pub fn host_key(&self) -> String {
        self.dir.join("host_key.pub").display().to_string()
    }

    /// Returns the file with the key that it lets in.
    pub fn key(&self) -> String {
        self.dir.join("key").display().to_string()
    }

    /// Asks for what hosts ask for: an account may be locked, or have no shell.
    fn try_it(&self) -> Result<(), String> {
        let mut ssh = Command::new("ssh");
        ssh.args([
            "-F",
            "none",
            "-T",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ]);
        ssh.args(["-o", "LogLevel=ERROR", "-o", "ConnectTimeout=5", "-o", "IdentitiesOnly=yes", "-i"]).arg(self.key());
        ssh.args(["-p", &self.port.to_string(), "-l", &self.user, "127.0.0.1", "gdo-chunks"]);
        said(&mut ssh).map(drop)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.made_run {
            let _ = std::fs::remove_dir(RUN);
        }
    }
}

/// Ends the sshd that a tour which was killed left running in `dir`.
pub fn end_left(dir: &Path) {
    let pid = std::fs::read_to_string(dir.join(PID)).ok().and_then(|text| text.trim().parse().ok());
    let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) else { return };
    // Another process may have its number by now.
    let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    if String::from_utf8_lossy(&line).contains(&config(dir).display().to_string()) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

fn config(dir: &Path) -> PathBuf {
    dir.join("sshd_config")
}

/// Starts the program on a port that is free.
fn run(program: &str, dir: &Path) -> Result<(Child, u16), String> {
    let at = |name: &str| dir.join(name).display().to_string();
    let failed = |error: std::io::Error| error.to_string();
    let mut told = String::new();
    // Somebody else may take the port before sshd does.
    for _ in 0..3 {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(failed)?.port();
        let settings = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey \"{}\"\nAuthorizedKeysFile \"{}\"\nPidFile \"{}\"\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n",
            at("host_key"),
            at("authorized_keys"),
            at(PID)
        );
        std::fs::write(config(dir), settings).map_err(failed)?;
        let log = File::create(dir.join("sshd.log")).map_err(failed)?;
        let mut sshd = Command::new(program);
        sshd.args(["-D", "-e", "-f"]).arg(config(dir)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = sshd.spawn().map_err(failed)?;
        let started = Instant::now();
        while child.try_wait().map_err(failed)?.is_none() && started.elapsed() < START {
            told = std::fs::read_to_string(dir.join("sshd.log")).unwrap_or_default();
            if told.contains("Server listening") {
                return Ok((child, port));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
        told = std::fs::read_to_string(dir.join("sshd.log")).unwrap_or(told);
    }
    Err(last_line(&told).unwrap_or_else(|| "sshd does not start".to_owned()))
}

/// Runs a program to its end and returns what it printed, or what it complained of.
fn said(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().display().to_string();
    let output: Output = command.stdin(Stdio::null()).output().map_err(|error| format!("cannot run {name}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(last_line(&String::from_utf8_lossy(&output.stderr)).unwrap_or_else(|| format!("{name} failed"))),
    }
}

fn last_line(text: &str) -> Option<String> {
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(git_devops::child::told)
}
