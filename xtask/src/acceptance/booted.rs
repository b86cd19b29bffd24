//! What a start of the machine is for: entries that come after it wait for it, and then are done by nobody's hand.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::command::{Context, Result, run, succeed};
use crate::netns::Net;
use crate::{ensure, fixtures};

use super::machine::{End, Machine};
use super::{World, copy, must_name};

/// What the machine was started with lies in `/run`, as it does where a kernel is what lies in `/boot`.
const BOOTED: &str = "C /run/booted-kernel - - - - /boot/vmlinuz\n";
/// What can be done only by a machine that was started with the new one.
const NEEDS_NEW: &str = "cmp /run/booted-kernel /boot/vmlinuz && cat /proc/sys/kernel/random/boot_id >> /root/ran";
/// The timer waits two minutes by itself, which only the long form has.
const SOON: &str = "[Timer]\nOnBootSec=\nOnBootSec=1s\nAccuracySec=1s\n";

pub fn reboot(world: &World) -> Result<String> {
    fixtures::remove(&world.scratch)?;
    let mut net = Net::new(&world.scratch)?;
    let host = net.add(None)?;
    let host = net.host(host);
    let at = |name: &str| world.scratch.join(name);
    let person = Person::new()?;
    let key = std::fs::read_to_string(host.dir.join("key.pub"))?;

    let mut origin = Machine::make(&at("origin"), &world.gdo, Some(host.network()))?;
    std::fs::write(at("origin/etc/tmpfiles.d/kernel.conf"), BOOTED)?;
    kernel(&at("origin"), 1)?;
    copy(&origin.root, &at("target"))?;
    let mut target = Machine::new(&at("target"), Some(host.network()));

    // Changes are made first on a machine that is started anew where they say so.
    origin.start()?;
    origin.run("gdo init --system --type web; gdo snapshot -q /boot/vmlinuz")?;
    let at_origin = |args: &[&str]| {
        let mut gdo = Command::new(&world.gdo);
        succeed(gdo.arg("--root").arg(at("origin")).args(args).env("GNUPGHOME", &person.home))
    };
    at_origin(&["release", "web", "--key", PERSON])?;
    kernel(&at("origin"), 2)?;
    origin.run("gdo snap -q")?;
    origin.tries("gdo reboot")?;
    ensure!(origin.ended()? == End::StartAnew, "'gdo reboot' switches the machine off");
    origin.start()?;
    origin.run(&format!("gdo exec -- sh -c '{NEEDS_NEW}'; gdo ci"))?;
    at_origin(&["release", "web", "--key", PERSON])?;
    let serves = at_origin(&["remote", "authorize", &key])?.text();
    std::fs::write(host.dir.join("authorized_keys"), serves + "\n")?;
    drop(origin);

    // The host that follows applies what comes before the start, and not more, however often it is asked.
    target.start()?;
    std::fs::create_dir(at("target/root/keys"))?;
    std::fs::copy(host.key(), at("target/root/keys/pull"))?;
    std::fs::write(at("target/root/keys/ann.asc"), &person.key)?;
    target.run("gdo init --system --type web --trust /root/keys/ann.asc")?;
    let (address, host_key) = (&host.address, host.host_key()?);
    target.run(&format!(
        "gdo remote add origin ssh://root@{address} --host-key '{}' --identity /root/keys/pull; gdo schedule --jitter 0 --reboot",
        host_key.trim()
    ))?;
    if !world.full {
        std::fs::create_dir(at("target/etc/systemd/system/gdo-up.timer.d"))?;
        std::fs::write(at("target/etc/systemd/system/gdo-up.timer.d/soon.conf"), SOON)?;
    }
    let ran = at("target/root/ran");
    for _ in 0..6 {
        let halted = target.tries("gdo up")?.exits(13)?;
        must_name(&halted, "gdo up -r")?;
        ensure!(!ran.exists(), "what needs the new kernel ran before the machine was started with it");
    }
    succeed(Command::new("cmp").arg(at("origin/boot/vmlinuz")).arg(at("target/boot/vmlinuz")))?;
    let before = target.run("cat /proc/sys/kernel/random/boot_id")?;
    target.tries("gdo up -r")?;
    ensure!(target.ended()? == End::StartAnew, "'gdo up -r' switches the machine off");

    // From here on nobody touches it.
    target.start()?;
    let (started, patience) = (Instant::now(), Duration::from_secs(if world.full { 300 } else { 30 }));
    while !(ran.exists() && target.run("systemctl is-active gdo-up.service || true")? == "inactive") {
        ensure!(started.elapsed() < patience, "nobody goes on: {}", target.run("journalctl -u gdo-up --no-pager")?);
        std::thread::sleep(Duration::from_millis(100));
    }
    let waited = started.elapsed().as_secs_f64();
    let after = target.run("cat /proc/sys/kernel/random/boot_id")?;
    ensure!(before != after, "systemd-nspawn gave both starts one boot id");
    ensure!(std::fs::read_to_string(&ran)?.trim() == after, "the command did not run once, after the start");
    let log = target.run("gdo log --host")?;
    ensure!(log.contains(&format!("boot={before}")), "the log does not say in which boot the start was asked for:\n{log}");
    let (is, wanted) = (target.run("gdo git rev-parse HEAD")?, at_origin(&["git", "rev-parse", "HEAD"])?.text());
    ensure!(is == wanted, "commit {is} is applied instead of {wanted}");
    target.run("gdo status --exit-code; test \"$(gdo up)\" = 'up to date'; test \"$(systemctl is-failed gdo-up)\" != failed")?;
    ensure!(std::fs::read_to_string(&ran)?.trim() == after, "the command ran again");
    target.tries("systemctl poweroff")?;
    ensure!(target.ended()? == End::Off, "the machine does not go off");
    Ok(format!("went on by itself {waited:.1} s after the start"))
}

/// Lays a kernel down, large enough to come in chunks.
fn kernel(root: &Path, seed: u64) -> Result {
    Ok(std::fs::write(root.join("boot/vmlinuz"), fixtures::Seeded::new(seed).bytes(1 << 20))?)
}

const PERSON: &str = "ann@example.org";

/// Whoever signs releases.
struct Person {
    /// The place of gpg's files, with a path short enough for the socket of its agent.
    home: PathBuf,
    /// The public key.
    key: Vec<u8>,
}

impl Person {
    fn new() -> Result<Self> {
        let home = std::env::temp_dir().join(format!("gdo-gpg-{}", std::process::id()));
        fixtures::remove(&home)?;
        std::fs::DirBuilder::new().mode(0o700).create(&home).context(|| format!("cannot create '{}'", home.display()))?;
        let mut person = Self { home, key: Vec::new() };
        person.gpg(&["--passphrase", "", "--quick-generate-key", PERSON, "ed25519", "sign", "never"])?;
        person.key = person.gpg(&["--armor", "--export", PERSON])?;
        Ok(person)
    }

    fn gpg(&self, args: &[&str]) -> Result<Vec<u8>> {
        let mut gpg = Command::new("gpg");
        Ok(succeed(gpg.arg("--homedir").arg(&self.home).args(["--batch", "--quiet", "--pinentry-mode", "loopback"]).args(args))?
            .stdout)
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        let _ = run(Command::new("gpgconf").arg("--homedir").arg(&self.home).args(["--kill", "all"]));
        let _ = fixtures::remove(&self.home);
    }
}
