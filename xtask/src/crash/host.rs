//! Another host, to fetch from: a repository away from the filesystem that is cut, and a real sshd on the loopback.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::command::{Context, Failure, Result, succeed};
use crate::fixtures;

use super::verbs::{NOW, Place};

/// A host that serves its repository; it is gone when dropped.
pub struct Host {
    /// Where its repository and its work tree are.
    pub place: Place,
    dir: PathBuf,
    port: u16,
    _sshd: Sshd,
}

impl Host {
    /// Starts a sshd for an empty repository below `dir`, which is made anew. One key may pull: that of [`Host::identity`].
    pub fn start(gdo: &Path, dir: &Path) -> Result<Host> {
        fixtures::remove(dir)?;
        let top = dir.join("host");
        let place = Place::new(gdo, &top, 1);
        std::fs::create_dir_all(place.work())?;
        place.does(&["init"])?;
        for name in ["key", "host_key"] {
            succeed(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(name)))?;
        }
        let key = dir.join("key.pub").display().to_string();
        // Its clock is that of all hosts here.
        let line = place.does(&["remote", "authorize", &key])?.text();
        let line = line.replace("command=\"", &format!("command=\"GIT_DEVOPS_TIME={NOW} "));
        std::fs::write(dir.join("authorized_keys"), line + "\n")?;
        std::fs::create_dir_all("/run/sshd")?; // sshd wants it
        // Somebody else may take the port before sshd does.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            if let Some(sshd) = Sshd::start(dir, port)? {
                return Ok(Host { place, dir: dir.to_owned(), port, _sshd: sshd });
            }
        }
        let said = std::fs::read_to_string(dir.join("sshd.log")).unwrap_or_default();
        Err(Failure(format!("sshd does not start: {said}")))
    }

    /// Returns its address, as `gdo clone` takes it.
    pub fn address(&self) -> String {
        format!("ssh://127.0.0.1:{}", self.port)
    }

    /// Returns the file with its host key.
    pub fn host_key(&self) -> String {
        self.dir.join("host_key.pub").display().to_string()
    }

    /// Returns the private key that may pull.
    pub fn identity(&self) -> String {
        self.dir.join("key").display().to_string()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fixtures::remove(&self.dir);
    }
}

/// The server, held by a thread of its own: the tracer waits for all children of its thread, and this one does not end.
struct Sshd {
    end: Option<mpsc::Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Sshd {
    /// Starts it; `None` if it did not want to.
    fn start(dir: &Path, port: u16) -> Result<Option<Sshd>> {
        let at = |name: &str| dir.join(name).display().to_string();
        let settings = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\n",
            at("host_key"),
            at("authorized_keys"),
        );
        std::fs::write(dir.join("sshd_config"), settings)?;
        let log = dir.join("sshd.log");
        // It ends with the thread, however this process ends.
        let mut sshd = Command::new("setpriv");
        sshd.args(["--pdeathsig", "TERM", "/usr/sbin/sshd", "-D", "-e", "-f"]).arg(dir.join("sshd_config"));
        sshd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let (end, is_over) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let keeper = std::thread::spawn(move || {
            let listening = sshd.spawn().map(|mut child| (listens(&mut child, &log), child));
            let (is_listening, child) = match listening {
                Ok((is_listening, child)) => (Ok(is_listening), Some(child)),
                Err(error) => (Err(error), None),
            };
            let _ = tell.send(is_listening);
            let _ = is_over.recv();
            if let Some(mut child) = child {
                let _ = child.kill();
                let _ = child.wait();
            }
        });
        let sshd = Sshd { end: Some(end), keeper: Some(keeper) };
        let is_listening = told.recv().map_err(|_| Failure("the thread of sshd ended".into()))?;
        Ok(is_listening.context(|| "cannot start sshd (is openssh-server installed?)")?.then_some(sshd))
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        drop(self.end.take());
        let _ = self.keeper.take().map(JoinHandle::join);
    }
}

/// Waits until a server listens, or has ended.
fn listens(sshd: &mut Child, log: &Path) -> bool {
    while matches!(sshd.try_wait(), Ok(None)) {
        if std::fs::read_to_string(log).unwrap_or_default().contains("Server listening") {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// A directory for the sockets of ssh, whose paths must be short; it is gone when dropped.
pub struct Sockets(PathBuf);

impl Sockets {
    /// Makes one.
    pub fn new() -> Result<Sockets> {
        for n in 0..1000 {
            let dir = PathBuf::from(format!("/tmp/gdo-crash-{}-{n}", std::process::id()));
            match std::fs::create_dir(&dir) {
                Ok(()) => return Ok(Sockets(dir)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Failure("no directory for sockets can be made in '/tmp'".into()))
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Removes what a run that was stopped left, as a restart of the machine would.
    pub fn clear(&self) -> Result {
        std::fs::remove_dir_all(&self.0)?;
        Ok(std::fs::create_dir(&self.0)?)
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
