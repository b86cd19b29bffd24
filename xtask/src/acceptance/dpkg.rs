//! Real apt on booted Debians: packages are upgraded where files of theirs are owned.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::command::{Context, Outcome, Result, repository, succeed};
use crate::ensure;

use super::machine::Machine;
use super::{World, copy, fingerprint, must_name, touched};

/// Shows what an administrator of the manual does with packages.
const PAGE: &str = "docs/manual/types.md";
const SECTION: &str = "## What packages bring";

/// Where changes are made first, and where they are replayed; both get their packages from a repository that lies in them.
struct Shop {
    origin: Machine,
    target: Machine,
    dir: PathBuf,
}

impl Shop {
    fn new(world: &World) -> Result<Self> {
        let dir = world.scratch.clone();
        crate::fixtures::remove(&dir)?;
        let origin = Machine::make(&dir.join("origin"), &world.gdo, None)?;
        // Only what lies in them: no other archive is asked.
        crate::fixtures::remove(&origin.root.join("etc/apt/sources.list.d"))?;
        std::fs::write(origin.root.join("etc/apt/sources.list"), "deb [trusted=yes] file:/srv/packages ./\n")?;
        std::fs::create_dir(origin.root.join("srv/packages"))?;
        copy(&origin.root, &dir.join("target"))?;
        let target = Machine::new(&dir.join("target"), None);
        let mut shop = Self { origin, target, dir };
        shop.publish(1)?;
        shop.origin.start()?;
        shop.target.start()?;
        shop.origin.run("gdo init --system --type web; gdo snapshot -q /etc/hostname")?;
        shop.target.run("gdo init --system --type web")?;
        shop.update()?;
        Ok(shop)
    }

    /// Puts a version of the package into the repositories of both.
    ///
    /// It has a conffile, a file that is none, one that only some may read, and one that its script hands to ucf.
    fn publish(&self, version: u32) -> Result {
        let dir = self.dir.join(format!("package-{version}"));
        let write = |path: &str, mode: u32, text: &str| -> Result {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().expect("BUG: a file has a directory"))?;
            std::fs::write(&path, text)?;
            Ok(std::fs::set_permissions(&path, PermissionsExt::from_mode(mode))?)
        };
        let control = format!(
            "Package: shop\nVersion: {version}\nArchitecture: all\nDepends: ucf\nMaintainer: a <a@example.org>\nDescription: shop\n"
        );
        let (port, workers) = (if version == 1 { 80 } else { 8080 }, if version < 3 { 2 } else { 8 });
        write("DEBIAN/control", 0o644, &control)?;
        write("DEBIAN/conffiles", 0o644, "/etc/shop/shop.conf\n")?;
        write("DEBIAN/postinst", 0o755, "#!/bin/sh\nset -e\nucf /usr/share/shop/limits.conf /etc/shop/limits.conf\n")?;
        write("etc/shop/shop.conf", 0o644, &format!("port {port}\n\n\n\nworkers {workers}\n"))?;
        write("etc/shop/password", 0o644, &format!("secret {version}\n"))?;
        write("usr/bin/shop", 0o755, &format!("#!/bin/sh\necho {version}\n"))?;
        write("usr/share/shop/limits.conf", 0o644, &format!("limit {version}\n"))?;
        let deb = self.dir.join(format!("shop_{version}_all.deb"));
        succeed(Command::new("dpkg-deb").args(["-Znone", "--root-owner-group", "-b"]).arg(&dir).arg(&deb))?;
        for root in [&self.origin.root, &self.target.root] {
            let packages = root.join("srv/packages");
            std::fs::copy(&deb, packages.join(deb.file_name().expect("BUG: a package has a name")))?;
            let list = succeed(Command::new("dpkg-scanpackages").args(["--multiversion", "."]).current_dir(&packages))?;
            std::fs::write(packages.join("Packages"), list.stdout)?;
        }
        Ok(())
    }

    /// Lets apt know on both what is published.
    fn update(&self) -> Result {
        [&self.origin, &self.target].into_iter().try_for_each(|machine| machine.run("apt-get -q update").map(drop))
    }

    /// Runs a script on the origin, and replays on the other what was made there.
    fn both(&self, script: &str) -> Result<String> {
        let said = self.origin.run(script)?;
        self.up()?.exits(0)?;
        Ok(said)
    }

    /// Brings the origin's branch over and replays it.
    fn up(&self) -> Result<Outcome> {
        self.send()?;
        self.target.tries("gdo up --offline --to o/web")
    }

    fn send(&self) -> Result {
        let mut git = Command::new("git");
        git.arg("--git-dir").arg(self.target.root.join("etc/git-devops/repo")).args(["fetch", "-q"]);
        git.arg(self.origin.root.join("etc/git-devops/repo")).arg("+refs/heads/web:refs/remotes/o/web");
        succeed(&mut git).map(drop)
    }

    /// Fails unless both have these files with these contents, nothing that is configured by half, and nothing that differs.
    fn both_have(&self, version: u32, files: &[(&str, &str)]) -> Result {
        for machine in [&self.origin, &self.target] {
            for (path, wanted) in files {
                let path = machine.root.join(path);
                let text = std::fs::read_to_string(&path).context(|| format!("cannot read '{}'", path.display()))?;
                ensure!(text == *wanted, "'{}' has\n{text}instead of\n{wanted}", path.display());
            }
            let state = machine.run("dpkg-query -W -f '${Status} ${Version}' shop; dpkg --audit")?;
            ensure!(state == format!("install ok installed {version}"), "after the upgrade dpkg says: {state}");
            let status = machine.run("gdo status --exit-code")?;
            ensure!(!status.contains("unsettled"), "{status}");
        }
        Ok(())
    }
}

/// Edits that an administrator makes, and what packages of the next version bring there.
pub fn upgrade(world: &World) -> Result<String> {
    let shop = Shop::new(world)?;
    shop.origin.run("gdo exec -- apt-get install -y shop; gdo snap -q /etc/shop/shop.conf /etc/shop/limits.conf; gdo ci")?;
    std::fs::write(shop.origin.root.join("etc/shop/shop.conf"), "ours\n")?;
    std::fs::write(shop.origin.root.join("etc/shop/limits.conf"), "our limit\n")?;
    shop.origin.run("gdo snap -q; gdo exec -- dpkg-divert --local --rename --add /usr/bin/shop")?;
    std::fs::copy(shop.origin.root.join("usr/bin/true"), shop.origin.root.join("usr/bin/shop"))?;
    shop.both(
        "gdo snap -q /usr/bin/shop
        gdo exec -- dpkg-statoverride --update --add root adm 0640 /etc/shop/password
        gdo ci",
    )?;
    shop.publish(2)?;
    let started = Instant::now();
    shop.both("gdo exec -- sh -c 'apt-get -q update && apt-get -q -y upgrade'; gdo ci")?;
    let seconds = started.elapsed().as_secs_f64();
    shop.both_have(
        2,
        &[
            ("etc/shop/shop.conf", "ours\n"),
            ("etc/shop/shop.conf.dpkg-dist", "port 8080\n\n\n\nworkers 2\n"),
            ("etc/shop/limits.conf", "our limit\n"),
            ("etc/shop/limits.conf.ucf-dist", "limit 2\n"),
            ("etc/shop/password", "secret 2\n"),
            ("usr/bin/shop.distrib", "#!/bin/sh\necho 2\n"),
        ],
    )?;
    for machine in [&shop.origin, &shop.target] {
        succeed(Command::new("cmp").arg(machine.root.join("usr/bin/true")).arg(machine.root.join("usr/bin/shop")))?;
        let password = std::fs::metadata(machine.root.join("etc/shop/password"))?;
        ensure!((password.mode() & 0o7777, password.gid()) == (0o640, 4), "the package took back the owner and the mode");
        let status = machine.tries("gdo status")?;
        must_name(&status, "leftover: 'etc/shop/shop.conf.dpkg-dist'")?;
        must_name(&status, "leftover: 'etc/shop/limits.conf.ucf-dist'")?;
    }
    Ok(format!("upgraded on both in {seconds:.1} s"))
}

/// The section of the manual, to the letter.
pub fn vendor(world: &World) -> Result<String> {
    let shop = Shop::new(world)?;
    let blocks = blocks()?;
    let [begin, lay, merge] = blocks.as_slice() else {
        return Err(format!("'{PAGE}' has {} blocks of commands below '{SECTION}', expected 3", blocks.len()).into());
    };
    shop.both(begin)?;
    shop.origin.run(lay)?;
    shop.both_have(1, &[("etc/shop/shop.conf", "port 80\n\n\n\nworkers 4\n")])?;
    shop.publish(2)?;
    shop.update()?;
    shop.both(merge)?;
    shop.both_have(2, &[("etc/shop/shop.conf", "port 8080\n\n\n\nworkers 4\n")])?;
    for machine in [&shop.origin, &shop.target] {
        ensure!(!machine.root.join("etc/shop/shop.conf.dpkg-dist").exists(), "what was merged still lies beside");
    }

    // The same once more, where both changed one line.
    shop.publish(3)?;
    shop.update()?;
    let before = std::fs::read(shop.origin.root.join("etc/shop/shop.conf"))?;
    let conflict = shop.origin.tries(&merge.replace("shop=2", "shop=3"))?.exits(10)?;
    must_name(&conflict, "conflict in etc/shop/shop.conf")?;
    ensure!(std::fs::read(shop.origin.root.join("etc/shop/shop.conf"))? == before, "a conflict changed the file itself");
    let beside = shop.origin.root.join("var/lib/git-devops/merge/files/etc/shop/shop.conf");
    let text = std::fs::read_to_string(&beside)?;
    ensure!(text.contains("<<<<<<<") && text.contains("workers 4") && text.contains("workers 8"), "not a conflict:\n{text}");
    std::fs::write(&beside, "port 8080\n\n\n\nworkers 6\n")?;
    let rest = merge.rsplit_once("merge vendor/web").expect("BUG: that is what it ends with").1;
    shop.both(&format!("cd /; gdo merge --continue {rest}"))?;
    shop.both_have(3, &[("etc/shop/shop.conf", "port 8080\n\n\n\nworkers 6\n")])?;
    shop.origin.run("gdo check")?;
    Ok(String::new())
}

/// Returns the commands of each block of the section, as a script.
fn blocks() -> Result<Vec<String>> {
    let path = repository().join(PAGE);
    let page = std::fs::read_to_string(&path).context(|| format!("cannot read '{}'", path.display()))?;
    let section = page.split(SECTION).nth(1).ok_or_else(|| format!("'{PAGE}' has no '{SECTION}'"))?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let is_command = |line: &&str| line.starts_with("# ");
    let script = |block: &str| block.lines().filter(is_command).map(|line| format!("{}\n", &line[2..])).collect::<String>();
    Ok(section.split("```").skip(1).step_by(2).map(script).collect())
}

/// Somebody else's apt, which nobody can be sure to come before or after.
pub fn at_work(world: &World) -> Result<String> {
    let shop = Shop::new(world)?;
    let (root, wait) = (&shop.target.root, shop.target.root.join("root/wait"));
    shop.both("gdo exec -- true; gdo ci")?;
    std::fs::write(shop.origin.root.join("etc/hostname"), "other\n")?;
    shop.origin.run("gdo snap -q; gdo exec -- touch /root/ran; gdo ci")?;
    shop.send()?;
    // It has its own lock here, and not yet dpkg's.
    std::fs::write(&wait, "")?;
    let hold = "-o DPkg::Pre-Invoke::='touch /root/begun; while test -e /root/wait; do sleep 0.1; done'";
    let mut apt =
        shop.target.inside(&format!("apt-get -q -y {hold} install shop"))?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_for(&root.join("root/begun"))?;
    let wait_seconds = |seconds: u32| {
        let mut git = Command::new("git");
        git.arg("--git-dir").arg(root.join("etc/git-devops/repo"));
        succeed(git.args(["config", "devops.dpkgwait", &seconds.to_string()]))
    };
    wait_seconds(1)?;
    let found = || -> Result<_> {
        Ok([fingerprint(&root.join("etc"))?, fingerprint(&root.join("root"))?, fingerprint(&root.join("usr"))?])
    };
    let before = found()?;
    let refused = shop.target.tries("gdo up --offline --to o/web")?.exits(7)?;
    must_name(&refused, "dpkg or apt is at work here")?;
    for (before, after) in before.iter().zip(&found()?) {
        let changed: Vec<String> = touched(before, after).into_iter().filter(|path| !path.starts_with("git-devops")).collect();
        ensure!(changed.is_empty(), "written while apt was at work: {changed:?}");
    }
    wait_seconds(60)?;
    let mut up = shop.target.inside("gdo up --offline --to o/web")?.stdout(Stdio::null()).spawn()?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(up.try_wait()?.is_none(), "'gdo up' does not wait for apt");
    ensure!(std::fs::read_to_string(root.join("etc/hostname"))? != "other\n", "a file was laid down while apt was at work");
    std::fs::remove_file(&wait)?;
    ensure!(apt.wait()?.success(), "apt failed, with 'gdo up' beside it");
    ensure!(up.wait()?.success(), "'gdo up' failed when apt was done");
    ensure!(root.join("root/ran").exists() && root.join("usr/bin/shop").exists(), "not all was done");
    shop.target.run("gdo status --exit-code; dpkg --audit")?;
    Ok(String::new())
}

fn wait_for(path: &Path) -> Result {
    let started = Instant::now();
    while !path.exists() {
        ensure!(started.elapsed() < Duration::from_secs(30), "'{}' does not come", path.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
