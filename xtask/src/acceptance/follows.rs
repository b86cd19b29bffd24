//! Hosts that follow their type: a whole Debian by signed releases, which costs little while nothing changes, and one that comes late to many changes.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::command::{Beside, Context, Result, measured, succeed};
use crate::compare::{Options, must_be_equal};
use crate::{ensure, fixtures};

use super::{World, must_name};

/// The largest resident set that `up` and `status` may have where nothing changed.
const MEMORY: u64 = 40 << 20;
/// How long these may take where others use the machine, too: ten times the 0.3 seconds that they may take without.
const TIME: Duration = Duration::from_secs(3);
const N_RUNS: usize = 5;

pub fn idle(world: &World) -> Result<String> {
    let place = Fleet::new(world)?;
    place.replay()?;
    let mut told = Vec::new();
    for (args, must_say) in
        [(&["up"][..], "up to date"), (&["up", "--offline"], "up to date"), (&["status"], "release 1 accepted and applied")]
    {
        let (mut cpu, mut elapsed, mut peaks) = (f64::MAX, Duration::MAX, Vec::new());
        for _ in 0..N_RUNS {
            let started = Instant::now();
            let (outcome, usage) = measured(&place.gdo("target", args), &place.dir)?;
            elapsed = elapsed.min(started.elapsed());
            must_name(&outcome.exits(0)?, must_say)?;
            cpu = cpu.min(usage.cpu);
            peaks.push(usage.peak_rss);
        }
        // Threads that meet in another way leave the allocator up to 5 MiB more, or less.
        peaks.sort_unstable();
        let peak = peaks[N_RUNS / 2];
        let line = args.join(" ");
        ensure!(peak <= MEMORY, "'gdo {line}' has a resident set of {} KiB where nothing changed", peak >> 10);
        ensure!(elapsed <= TIME, "'gdo {line}' takes {elapsed:.2?}, {cpu:.2} s of a processor");
        let [least, most] = [peaks[0], peaks[N_RUNS - 1]].map(|peak| peak as f64 / f64::from(1 << 20));
        told.push(format!("{line} {elapsed:.2?}, {cpu:.2} s of a processor, {least:.1} to {most:.1} MiB"));
    }
    Ok(told.join("; "))
}

/// How long one change may take in a replay, two files and a command: 300 of them take two minutes.
const PER_CHANGE: Duration = Duration::from_millis(400);

pub fn long_line(world: &World) -> Result<String> {
    // Few of them do not make up for what takes its time once.
    let (n, limit) = if world.full { (300, 300 * PER_CHANGE) } else { (30, 30 * PER_CHANGE * 3) };
    let dir = world.scratch.join("line");
    fixtures::remove(&dir)?;
    let [origin, target] = ["origin", "target"].map(|name| dir.join(name).join("tree"));
    let gdo = |tree: &Path, args: &[&str]| {
        let mut command = Command::new(&world.gdo);
        command.arg("-q").args(args).current_dir(tree);
        succeed(&mut command)
    };
    for tree in [&origin, &target] {
        std::fs::create_dir_all(tree)?;
        gdo(tree, &["init"])?;
    }
    fixtures::many_files(&origin, 12_000)?;
    gdo(&origin, &["snap", "."])?;
    for at in 0..n {
        std::fs::write(origin.join(format!("group-00/new-{at}")), format!("{at}\n"))?;
        std::fs::write(origin.join("group-00/changed"), format!("{at}\n"))?;
        gdo(&origin, &["snap"])?;
        gdo(&origin, &["exec", "--", "sh", "-c", &format!("echo {at} >> ../ran; cat group-00/changed >> ../ran")])?;
    }
    gdo(&origin, &["ci"])?;
    let from = origin.join(".git");
    let fetch =
        ["fetch", "-q", from.to_str().ok_or("the scratch directory's name is not UTF-8")?, "+refs/heads/*:refs/remotes/o/*"];
    succeed(Command::new("git").arg("--git-dir").arg(target.join(".git")).args(fetch))?;
    let started = Instant::now();
    gdo(&target, &["up", "--offline", "--to", "o/main"])?;
    let elapsed = started.elapsed();
    let wanted: String = (0..n).map(|at| format!("{at}\n{at}\n")).collect();
    let ran = std::fs::read_to_string(target.with_file_name("ran")).context(|| "the commands left nothing")?;
    ensure!(ran == wanted, "the commands ran in another order, not each once, or met other files:\n{ran}");
    must_be_equal(&origin, &target, &Options { ignore: vec![".git".into()] }).context(|| "the target is not like the origin")?;
    ensure!(elapsed <= limit, "{n} changes were replayed in {elapsed:.1?}; {limit:?} are allowed");
    Ok(format!("{n} changes replayed in {elapsed:.1?}"))
}

/// An origin that has a Debian and serves its releases, and a target that has nothing yet; both are directories, and systems.
struct Fleet {
    gdo: PathBuf,
    dir: PathBuf,
    _sshd: Beside,
}

impl Fleet {
    fn new(world: &World) -> Result<Self> {
        let dir = world.scratch.join("fleet");
        fixtures::remove(&dir)?;
        for name in ["origin", "target"] {
            std::fs::create_dir_all(dir.join(name))?;
        }
        fixtures::debian_root(&dir.join("origin"))?;
        // The target has its store there before it is anything else, and a directory that differs is not taken over.
        succeed(Command::new("chattr").arg("-d").arg(dir.join("origin/var/cache")))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let at = |name: &str| dir.join(name).display().to_string();
        for name in ["host-key", "key"] {
            succeed(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &at(name)]))?;
        }
        let settings = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nSetEnv SHLVL=2\n",
            at("host-key"),
            at("authorized-keys")
        );
        std::fs::write(dir.join("sshd-config"), settings)?;
        std::fs::write(dir.join("authorized-keys"), "")?;
        let _ = std::fs::create_dir_all("/run/sshd"); // sshd wants it
        let log = File::create(dir.join("sshd.log"))?;
        let sshd = Command::new("/usr/sbin/sshd").args(["-D", "-e", "-f", &at("sshd-config")]).stderr(log).spawn();
        let fleet = Self { gdo: world.gdo.clone(), dir: dir.clone(), _sshd: Beside(sshd.context(|| "cannot run sshd")?) };
        fleet.release()?;
        let line = succeed(fleet.gdo("origin", &["remote", "authorize"]).arg(dir.join("key.pub")))?.text();
        std::fs::write(dir.join("authorized-keys"), line + "\n")?;
        succeed(&mut fleet.gdo("target", &["init", "--system", "--type", "web", "--trust", &at("ann.asc")]))?;
        let address = format!("ssh://127.0.0.1:{port}");
        let add = ["remote", "add", "origin", &address, "--host-key", &at("host-key.pub"), "-i", &at("key")];
        succeed(&mut fleet.gdo("target", &add))?;
        Ok(fleet)
    }

    /// Makes a release of all that the origin has, but for what belongs to the host and to dpkg, and of a command.
    fn release(&self) -> Result {
        // Short, because gpg's agent has a socket in it.
        let home = std::env::temp_dir().join(format!("gdo-acceptance-{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&home).context(|| format!("cannot make '{}'", home.display()))?;
        let key = self.dir.join("ann.asc");
        let gpg = |args: &[&str]| succeed(Command::new("gpg").arg("--homedir").arg(&home).args(args));
        gpg(&["--batch", "--quiet", "--passphrase", "", "--quick-gen-key", "Ann <ann@example.org>", "ed25519", "sign", "2y"])?;
        gpg(&["--armor", "--output", key.to_str().ok_or("the scratch directory's name is not UTF-8")?, "--export"])?;
        succeed(&mut self.gdo("origin", &["init", "--system", "--type", "web", "--trust", &key.display().to_string()]))?;
        let root = self.dir.join("origin");
        let mut owned = Vec::new();
        for entry in std::fs::read_dir(&root)? {
            let name = entry?.file_name();
            if !["proc", "sys", "dev", "run"].iter().any(|kernels| name == *kernels) {
                owned.push(name);
            }
        }
        succeed(self.gdo("origin", &["snap", "-m", "base"]).current_dir(&root).args(&owned))?;
        succeed(&mut self.gdo("origin", &["exec", "--", "sh", "-c", "echo welcome > /etc/motd"]))?;
        succeed(&mut self.gdo("origin", &["ci"]))?;
        succeed(self.gdo("origin", &["release", "web", "--key", "ann@example.org"]).env("GNUPGHOME", &home))?;
        succeed(Command::new("gpgconf").arg("--homedir").arg(&home).args(["--kill", "all"]))?;
        fixtures::remove(&home)
    }

    /// Lets the target become what the origin is.
    fn replay(&self) -> Result {
        succeed(&mut self.gdo("target", &["up"]))?;
        let [here, there] = ["target", "origin"].map(|name| self.dir.join(name));
        for part in ["usr", "etc/ssh", "var/lib/dpkg"] {
            must_be_equal(&here.join(part), &there.join(part), &Options::default()).context(|| format!("'{part}' differs"))?;
        }
        let of = |name: &str| -> Result<String> { Ok(succeed(&mut self.gdo(name, &["fingerprint"]))?.text()) };
        let (here, there) = (of("target")?, of("origin")?);
        ensure!(here == there, "the target looks like {here}, the origin like {there}");
        Ok(())
    }

    /// Returns the program on one of the two systems.
    fn gdo(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.gdo);
        command.arg("--root").arg(self.dir.join(name)).args(args).current_dir(&self.dir);
        for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_DEVOPS_STORE", "XDG_CONFIG_HOME"] {
            command.env_remove(variable);
        }
        command.env("HOME", &self.dir).env("LC_ALL", "C.UTF-8");
        command
    }
}
