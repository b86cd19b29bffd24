//! A Debian root that is started as a machine: with its own init, processes, network and boot id, and without a kernel of its own.
//!
//! It is `systemd-nspawn` that starts it, as `systemd-nspawn@.service` does: a machine that is to start anew ends, with an exit code that says so.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::command::{Context, Outcome, Result, code_of, run, succeed};
use crate::{ensure, fixtures};

/// What systemd-nspawn exits with when the machine asked to be started anew.
const STARTS_ANEW: i32 = 133;
/// So long a machine may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// In a mount namespace with a `/run` of its own and in control groups of its own, so that nothing of it is left on the host.
const START: &str = r#"
mount -t tmpfs tmpfs /run
for top in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
    test ! -e $top/cgroup.procs || { mkdir -p $top/$1; echo $$ > $top/$1/cgroup.procs; }
done
shift
exec systemd-nspawn --quiet --boot --register=no --keep-unit --console=pipe "$@"
"#;

/// A root that can be started.
pub struct Machine {
    /// Its root, as the host sees it.
    pub root: PathBuf,
    network: Option<PathBuf>,
    nspawn: Option<Child>,
}

/// Why a machine does not run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was switched off.
    Off,
    /// It is to be started anew.
    StartAnew,
}

impl Machine {
    /// Returns the machine whose root is at `root`; `network` is the namespace that it will be in, one of its own if there is none.
    pub fn new(root: &Path, network: Option<PathBuf>) -> Self {
        Self { root: root.to_owned(), network, nspawn: None }
    }

    /// Makes the root of a machine at `root`, with the program in it.
    pub fn make(root: &Path, gdo: &Path, network: Option<PathBuf>) -> Result<Self> {
        std::fs::create_dir_all(root)?;
        fixtures::debian_machine(root)?;
        let bin = root.join("usr/local/bin");
        // What debuggers need is most of it, and of no use there.
        succeed(Command::new("strip").args(["--strip-debug", "-o"]).arg(bin.join("gdo")).arg(gdo))?;
        std::fs::hard_link(bin.join("gdo"), bin.join("git-devops"))?;
        Ok(Self::new(root, network))
    }

    /// Starts it, and returns once it is up.
    pub fn start(&mut self) -> Result {
        let log = std::fs::File::create(self.log())?;
        let mut nspawn = Command::new("nsenter");
        nspawn.args(self.network.iter().map(|network| format!("--net={}", network.display())));
        nspawn.args(["unshare", "--mount", "sh", "-ec", START, "sh", &self.groups(), "--directory"]).arg(&self.root);
        nspawn.args(self.network.is_none().then_some("--private-network"));
        nspawn.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.nspawn = Some(nspawn.spawn().context(|| "cannot run systemd-nspawn")?);
        let started = Instant::now();
        loop {
            let ended = self.nspawn.as_mut().map(Child::try_wait).transpose()?.flatten();
            let log = || std::fs::read_to_string(self.log()).unwrap_or_default();
            ensure!(ended.is_none() && started.elapsed() < PATIENCE, "the machine does not start:\n{}", log());
            // Degraded is one where something of Debian's own does not work where these tests are run.
            if self.init()?.is_some()
                && ["running", "degraded"].contains(&run(&mut self.inside("systemctl is-system-running")?)?.text().as_str())
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Returns a script as root of the machine runs it.
    pub fn inside(&self, script: &str) -> Result<Command> {
        let init = self.init()?.ok_or("the machine does not run, or not any more")?;
        let mut command = Command::new("nsenter");
        command.args(["--target", &init, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"]);
        command.args(["sh", "-ec", script]).env_clear().env("HOME", "/root").env("LC_ALL", "C.UTF-8");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        Ok(command)
    }

    /// Runs a script there that must succeed, and returns what it printed.
    pub fn run(&self, script: &str) -> Result<String> {
        Ok(succeed(&mut self.inside(script)?)?.text())
    }

    /// Runs a script there, whatever comes of it.
    pub fn tries(&self, script: &str) -> Result<Outcome> {
        run(&mut self.inside(script)?)
    }

    /// Waits until it does not run any more.
    pub fn ended(&mut self) -> Result<End> {
        let nspawn = self.nspawn.as_mut().expect("BUG: the machine was started");
        let started = Instant::now();
        let status = loop {
            if let Some(status) = nspawn.try_wait()? {
                break status;
            }
            ensure!(started.elapsed() < PATIENCE, "the machine does not end");
            std::thread::sleep(Duration::from_millis(50));
        };
        self.nspawn = None;
        self.leave_groups();
        match code_of(status) {
            0 => Ok(End::Off),
            STARTS_ANEW => Ok(End::StartAnew),
            code => Err(format!("systemd-nspawn exited with {code}:\n{}", std::fs::read_to_string(self.log())?).into()),
        }
    }

    /// Returns the number of its first process, when there is one.
    fn init(&self) -> Result<Option<String>> {
        let nspawn = self.nspawn.as_ref().map(Child::id).unwrap_or_default();
        let children = std::fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).unwrap_or_default();
        let own = std::fs::read_link("/proc/self/ns/pid")?;
        // Before it has processes of its own, it is one of the host, and what is run in it would be run there.
        let is_apart = |pid: &&str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|there| there != own);
        Ok(children.split_whitespace().find(is_apart).map(str::to_owned))
    }

    fn log(&self) -> PathBuf {
        self.root.with_extension("log")
    }

    /// Returns the name of its control groups.
    fn groups(&self) -> String {
        let name = self.root.file_name().unwrap_or_default();
        format!("gdo-{}-{}", std::process::id(), name.display())
    }

    fn leave_groups(&self) {
        for top in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"] {
            let groups = Path::new(top).join(self.groups());
            if groups.exists() {
                let _ = run(Command::new("find").arg(&groups).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]));
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let init = self.init().ok().flatten().and_then(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?));
        let Some(mut nspawn) = self.nspawn.take() else { return };
        match init {
            // With it, all of its processes end.
            Some(init) => drop(rustix::process::kill_process(init, rustix::process::Signal::KILL)),
            None => drop(nspawn.kill()),
        }
        let _ = nspawn.wait();
        self.leave_groups();
    }
}
