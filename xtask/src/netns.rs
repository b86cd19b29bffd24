//! Hosts in network namespaces of their own, on one switch, each with a sshd and a line of a given speed. Needs root.
//!
//! All of it is gone when [`Net`] is dropped.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::command::{Context, Result, succeed};
use crate::ensure;
use crate::packages::Need;

/// What this module starts.
pub const NEEDS: &[Need] = &[("ip", "iproute2"), ("tc", "iproute2"), ("ssh", "openssh-client"), ("sshd", "openssh-server")];

/// Hosts on one switch.
pub struct Net {
    scratch: PathBuf,
    switch: Namespace,
    hosts: Vec<Host>,
}

/// A host: its network, its sshd, and the keys by which it goes to others.
pub struct Host {
    /// Its address.
    pub address: String,
    /// A directory for it alone.
    pub dir: PathBuf,
    namespace: Namespace,
    sshd: Child,
}

/// A network namespace, which goes when dropped.
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).stderr(Stdio::null()).status();
    }
}

impl Net {
    /// Makes a switch without hosts; `scratch` is a directory for their files.
    pub fn new(scratch: &Path) -> Result<Self> {
        std::fs::create_dir_all(scratch)?;
        let scratch = scratch.canonicalize()?;
        let switch = Namespace(format!("gdo-{}", std::process::id()));
        ip(&["netns", "add", &switch.0])?;
        ip(&["-n", &switch.0, "link", "add", "switch", "type", "bridge"])?;
        ip(&["-n", &switch.0, "link", "set", "switch", "up"])?;
        Ok(Self { scratch, switch, hosts: Vec::new() })
    }

    /// Adds a host that sends `mbit` megabits in a second at most (`None`: as fast as it can), and returns its number.
    pub fn add(&mut self, mbit: Option<u32>) -> Result<usize> {
        let number = self.hosts.len();
        let namespace = Namespace(format!("{}-{number}", self.switch.0));
        let (name, port) = (namespace.0.clone(), format!("p{number}"));
        ip(&["netns", "add", &name])?;
        ip(&["link", "add", "line", "netns", &name, "type", "veth", "peer", "name", &port, "netns", &self.switch.0])?;
        ip(&["-n", &self.switch.0, "link", "set", &port, "master", "switch", "up"])?;
        let address = format!("10.77.0.{}", number + 1);
        ip(&["-n", &name, "addr", "add", &format!("{address}/24"), "dev", "line"])?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        ip(&["-n", &name, "link", "set", "line", "up"])?;
        if let Some(mbit) = mbit {
            let rate = format!("{mbit}mbit");
            let tbf = ["qdisc", "add", "dev", "line", "root", "tbf", "rate", &rate, "burst", "128kb", "latency", "50ms"];
            succeed(Command::new("tc").args(["-n", &name]).args(tbf))?;
        }
        let dir = self.scratch.join(format!("host-{number}"));
        std::fs::create_dir_all(&dir)?;
        let sshd = start_sshd(&namespace, &address, &dir)?;
        self.hosts.push(Host { address, dir, namespace, sshd });
        Ok(number)
    }

    /// Returns a host.
    pub fn host(&self, number: usize) -> &Host {
        &self.hosts[number]
    }
}

impl Host {
    /// Returns `program` as this host runs it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace.0]).arg(program.as_ref()).current_dir(&self.dir);
        command
    }

    /// Returns the file by which a program enters its network.
    pub fn network(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.namespace.0)
    }

    /// Returns the private key that this host shows.
    pub fn key(&self) -> PathBuf {
        self.dir.join("key")
    }

    /// Lets `key` in: for `command` alone, or for everything.
    pub fn authorize(&self, key: &Path, command: Option<&str>) -> Result {
        let public = std::fs::read_to_string(key.with_extension("pub"))?;
        let line = match command {
            Some(command) => format!("restrict,command=\"{command}\" {public}"),
            None => public,
        };
        let path = self.dir.join("authorized_keys");
        let known = std::fs::read_to_string(&path).unwrap_or_default();
        Ok(std::fs::write(path, known + &line)?)
    }

    /// Lets nobody in any more.
    pub fn forbid_all(&self) -> Result {
        Ok(std::fs::write(self.dir.join("authorized_keys"), "")?)
    }

    /// Returns the public key of its sshd.
    pub fn host_key(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.dir.join("host_key.pub"))?)
    }

    /// Returns the options by which ssh of this host goes to `others` without asking.
    pub fn ssh_options(&self) -> Vec<String> {
        let key = format!("IdentityFile={}", self.key().display());
        let options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", &key];
        options.iter().flat_map(|option| ["-o".to_owned(), (*option).to_owned()]).collect()
    }

    /// Returns how many bytes came over its line.
    pub fn received(&self) -> Result<u64> {
        let counter = succeed(self.command("cat").arg("/sys/class/net/line/statistics/rx_bytes"))?.text();
        Ok(counter.parse().map_err(|_| "the line does not count")?)
    }

    /// Returns how many bytes wait in the queue of its line: the limit of its speed holds them back, and nobody can call them back.
    pub fn queued(&self) -> Result<u64> {
        let said = succeed(Command::new("tc").args(["-n", &self.namespace.0, "-s", "-j", "qdisc", "show", "dev", "line"]))?;
        let queues: serde_json::Value = serde_json::from_slice(&said.stdout).map_err(|_| "tc does not print JSON")?;
        Ok(queues.as_array().into_iter().flatten().filter_map(|queue| queue["backlog"].as_u64()).sum())
    }

    /// Returns the seconds of processor time that its sshd, and what it started and saw end, took.
    pub fn sshd_cpu(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.sshd.id()))?;
        let fields = text.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(4);
        let ticks: f64 = fields.filter_map(|field| field.parse::<f64>().ok()).sum();
        Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Ends the sessions of its sshd, as a host does that loses its power.
    pub fn cut_sessions(&self) -> Result {
        let children = format!("/proc/{0}/task/{0}/children", self.sshd.id());
        for child in std::fs::read_to_string(children)?.split_whitespace() {
            let pid = child.parse().ok().and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.cut_sessions();
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

fn ip(args: &[&str]) -> Result {
    succeed(Command::new("ip").args(args)).map(drop)
}

fn start_sshd(namespace: &Namespace, address: &str, dir: &Path) -> Result<Child> {
    for name in ["host_key", "key"] {
        let path = dir.join(name);
        if !path.exists() {
            succeed(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path))?;
        }
    }
    std::fs::write(dir.join("authorized_keys"), "")?;
    let at = |name: &str| dir.join(name).display().to_string();
    let settings = format!(
        "ListenAddress {address}:22\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\n\
         KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\nMaxSessions 100\nSetEnv SHLVL=2\n\
         Subsystem sftp internal-sftp\n",
        at("host_key"),
        at("authorized_keys")
    );
    std::fs::write(dir.join("sshd_config"), settings)?;
    let _ = std::fs::create_dir_all("/run/sshd"); // sshd wants it
    // 'ip netns exec' becomes the program, so that this is the pid of sshd.
    let log = std::fs::File::create(dir.join("sshd.log"))?;
    let mut sshd = Command::new("ip");
    sshd.args(["netns", "exec", &namespace.0, "/usr/sbin/sshd", "-D", "-e", "-f", &at("sshd_config")]);
    let mut sshd = sshd.stdin(Stdio::null()).stderr(log).process_group(0).spawn().context(|| "cannot run sshd")?;
    let started = Instant::now();
    while !std::fs::read_to_string(at("sshd.log"))?.contains("Server listening") {
        let has_ended = sshd.try_wait()?.is_some();
        ensure!(!has_ended && started.elapsed() < Duration::from_secs(20), "sshd does not start; see '{}'", at("sshd.log"));
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(sshd)
}
