//! Connections by OpenSSH: one for each host, shared by all that is said to it.
//!
//! Nothing of the caller's ssh configuration counts, no agent and no password, and only the host key that was given when the remote was added.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::address::Address;
use super::client::Client;
use super::fetch::Link;
use super::wire::CHUNKS_COMMAND;
use crate::child::{Words, shell_quoted};
use crate::durable::{self, Scratch};
use crate::error::{Context, Error, Kind, Result};

/// Another host, as this repository knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// What it is called here.
    pub name: String,
    /// Where it is.
    pub address: Address,
    /// The private key to show; without one, ssh's usual ones.
    pub identity: Option<PathBuf>,
}

/// How long a host may take to answer at all.
const CONNECT_TIME: Duration = Duration::from_secs(20);

/// The connection to one host; it ends when dropped.
pub struct Connection {
    remote: Remote,
    known_hosts: PathBuf,
    master: Child,
    /// What ssh said.
    said: Words,
    /// The directory of the socket by which other sessions share this one.
    control: Scratch,
}

impl Connection {
    /// Connects. Host keys are in `known_hosts`, under the remote's name; the connection gets a directory of its own in `scratch`, whose path must be
    /// short, since that of a socket is.
    pub fn open(remote: &Remote, known_hosts: &Path, scratch: &Path) -> Result<Self> {
        let what = || format!("cannot connect to '{}' at '{}'", remote.name, remote.address);
        let control = Scratch::make(scratch, PREFIX).context(what)?;
        let mut command = ssh(remote, known_hosts, control.path());
        // A session of its own, which ends with us, however we end: the host then hears the end of what we say.
        command.args(["-o", "ControlMaster=yes"]).args(remote.address.ssh_args()).arg(CHUNKS_COMMAND);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut master = command.spawn().context(|| "cannot run ssh; is it installed?").context(what)?;
        let said = Words::of(master.stderr.take());
        if let Some(mut stdin) = master.stdin.as_ref() {
            let _ = stdin.write_all(&Client::greeting()); // if it is gone already, its last words tell
        }
        let (remote, known_hosts) = (remote.clone(), known_hosts.to_owned());
        let mut connection = Self { remote, known_hosts, master, said, control };
        connection.wait().context(what)?;
        Ok(connection)
    }

    /// Removes what the connections of runs that were killed left in `scratch`.
    pub fn clear(scratch: &Path) -> Result<()> {
        Scratch::clear(scratch, PREFIX)
    }

    /// Waits until other sessions can share the connection.
    fn wait(&mut self) -> Result<()> {
        let started = Instant::now();
        while !durable::is_there(&self.control.path().join(SOCKET)) {
            if !self.is_alive() || started.elapsed() > CONNECT_TIME {
                let said = self.said.last_line(LAST_WORDS).unwrap_or_else(|| "no answer in time".to_owned());
                return Err(Error::new(Kind::Io, format!("ssh says: {said}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Returns which host this is.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Connects anew if the connection has ended: a host ends one on which nobody asks anything for a minute.
    pub fn revive(&mut self) -> Result<()> {
        if self.is_alive() {
            return Ok(());
        }
        let scratch = self.control.path().parent().unwrap_or(Path::new("/")).to_owned();
        *self = Self::open(&self.remote, &self.known_hosts, &scratch)?;
        Ok(())
    }

    fn is_alive(&mut self) -> bool {
        matches!(self.master.try_wait(), Ok(None))
    }

    /// Returns a line on which the host answers requests for chunks.
    pub fn chunks(&self) -> Result<Link> {
        let mut command = ssh(&self.remote, &self.known_hosts, self.control.path());
        command.args(["-o", "ControlMaster=no"]).args(self.remote.address.ssh_args()).arg(CHUNKS_COMMAND);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context(|| "cannot run ssh")?;
        let words = Words::of(child.stderr.take());
        let (Some(output), Some(input)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::new(Kind::Bug, "BUG: ssh was started without streams"));
        };
        let (input, output) = (OwnedFd::from(input), OwnedFd::from(output));
        // Only for speed: a user who has many large pipes gets small ones.
        let _ = rustix::pipe::fcntl_setpipe_size(&input, PIPE);
        Ok(Link { name: self.remote.name.clone(), input, output, words, keeper: Box::new(Reaped(child)) })
    }

    /// Returns what git is to run for ssh, as `GIT_SSH_COMMAND`: a line for the shell.
    pub fn git_ssh_command(&self) -> OsString {
        let command = ssh(&self.remote, &self.known_hosts, self.control.path());
        let mut line = OsString::from("ssh");
        for arg in command.get_args().chain(["-o", "ControlMaster=no"].map(OsStr::new)) {
            line.push(" ");
            line.push(shell_quoted(arg));
        }
        line
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.master.kill();
        let _ = self.master.wait();
    }
}

/// A session that ends when dropped.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const SOCKET: &str = "s";
/// Bytes that wait for us at most, so that ssh and we need not take turns.
const PIPE: usize = 1 << 20;
/// What the names of directories with sockets begin with.
const PREFIX: &str = ".gdo-";
/// How long the last words of an ssh may take after its end.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Returns ssh with the options of every call.
#[allow(clippy::disallowed_methods)] // the one place besides git's
fn ssh(remote: &Remote, known_hosts: &Path, control: &Path) -> Command {
    let mut command = Command::new("ssh");
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C");
    command.args(["-F", "none", "-T", "-x", "-a"]);
    for option in OPTIONS.iter().chain(has_aes().then_some(&AES_FIRST)) {
        command.args(["-o", option]);
    }
    command.arg("-o").arg(with_path("UserKnownHostsFile", known_hosts));
    command.arg("-o").arg(with_path("ControlPath", &control.join(SOCKET)));
    command.arg("-o").arg(format!("HostKeyAlias={}", remote.name));
    if let Some(identity) = &remote.identity {
        command.args(["-o", "IdentitiesOnly=yes", "-o"]).arg(with_path("IdentityFile", identity));
    }
    command
}

const OPTIONS: &[&str] = &[
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "CheckHostIP=no",
    "GlobalKnownHostsFile=/dev/null",
    "UpdateHostKeys=no",
    "VerifyHostKeyDNS=no",
    "IdentityAgent=none",
    "PreferredAuthentications=publickey",
    "ProxyCommand=none",
    "PermitLocalCommand=no",
    "ClearAllForwardings=yes",
    "EscapeChar=none",
    "ConnectTimeout=10",
    "ServerAliveInterval=15",
    "LogLevel=ERROR",
];

/// Where the processor knows AES, this costs half as much as ssh's own first choice; a host that does not know it takes another one.
const AES_FIRST: &str = "Ciphers=^aes128-gcm@openssh.com";

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Returns a setting whose value is a path, which ssh would else cut at blanks and expand.
fn with_path(key: &str, path: &Path) -> OsString {
    let mut setting = format!("{key}=\"").into_bytes();
    for &b in path.as_os_str().as_bytes() {
        match b {
            b'%' => setting.extend(b"%%"),
            b'"' | b'\\' => setting.extend([b'\\', b]),
            b => setting.push(b),
        }
    }
    setting.push(b'"');
    OsString::from_vec(setting)
}
