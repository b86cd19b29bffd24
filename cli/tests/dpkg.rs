//! A system instance below another directory, with a real dpkg in it: commands run in that root, packages are upgraded, and nobody is asked anything.
//!
//! The root has the programs of this machine, so these tests need root rights and a machine with dpkg.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::Run;
use crate::common::root::{make_root, sh};

/// Two roots: where changes are made first, and where they are replayed.
struct Pair {
    temp: tempfile::TempDir,
}

/// What a root needs for dpkg to work in it.
const PROGRAMS: &str = "sh dpkg dpkg-deb dpkg-query dpkg-divert dpkg-statoverride dpkg-split dpkg-trigger tar rm cat mv cp ls mkdir chmod chown touch sleep \
                        diff env ldconfig start-stop-daemon sed";

fn is_possible() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let has_dpkg = ["/usr/bin/dpkg", "/usr/bin/dpkg-deb"].iter().all(|path| Path::new(path).exists());
    if !(is_root && has_dpkg) {
        eprintln!("skipped: needs root and dpkg");
    }
    is_root && has_dpkg
}

impl Pair {
    /// Makes both alike: version 1 of package 'tiny' is installed, and its conffile and 'etc/own' are owned.
    fn new() -> Self {
        let pair = Self { temp: tempfile::tempdir().unwrap() };
        let o = pair.path("o", "");
        make_root(&o, PROGRAMS);
        pair.build("1", "package 1\n", "");
        pair.build("2", "package 2\n", "");
        fs::copy(pair.deb("1"), pair.path("o", "tmp/tiny.deb")).unwrap();
        pair.chroot("o", "dpkg -i /tmp/tiny.deb");
        fs::write(pair.path("o", "etc/tiny.conf"), "ours\n").unwrap();
        fs::write(pair.path("o", "etc/own"), "1\n").unwrap();
        sh("cp -a \"$1\" \"$2\"", &[o.to_str().unwrap(), pair.path("t", "").to_str().unwrap()]);
        pair.ok("o", &["init", "--system", "--type", "web"]);
        pair.ok("t", &["init", "--system", "--type", "web"]);
        pair.ok("o", &["snapshot", "-q", "/etc/tiny.conf", "/etc/own"]);
        pair.up(0);
        pair
    }

    fn path(&self, root: &str, path: &str) -> PathBuf {
        self.temp.path().join(root).join(path)
    }

    fn deb(&self, version: &str) -> PathBuf {
        self.path(&format!("tiny_{version}.deb"), "").components().collect()
    }

    /// Builds a version of 'tiny': a conffile, a program, a file that a statoverride is for.
    fn build(&self, version: &str, conf: &str, postinst: &str) {
        let dir = self.path(&format!("build-{version}"), "");
        let write = |path: &str, text: &str| {
            fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
            fs::write(dir.join(path), text).unwrap();
        };
        let control =
            format!("Package: tiny\nVersion: {version}\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: tiny\n");
        write("DEBIAN/control", &control);
        write("DEBIAN/conffiles", "/etc/tiny.conf\n");
        write("etc/tiny.conf", conf);
        write("usr/bin/tiny", &format!("#!/bin/sh\necho {version}\n"));
        if !postinst.is_empty() {
            write("DEBIAN/postinst", &format!("#!/bin/sh\n{postinst}\n"));
            sh("chmod 755 \"$1\"", &[dir.join("DEBIAN/postinst").to_str().unwrap()]);
        }
        let deb = self.deb(version);
        sh("dpkg-deb -Znone --root-owner-group -b \"$1\" \"$2\"", &[dir.to_str().unwrap(), deb.to_str().unwrap()]);
    }

    fn gdo(&self, root: &str, args: &[&str]) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gdo"));
        command.arg("--root").arg(self.path(root, "")).args(args).current_dir(self.temp.path());
        for key in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_DEVOPS_STORE"] {
            command.env_remove(key);
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Run { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
    }

    fn ok(&self, root: &str, args: &[&str]) -> String {
        let run = self.gdo(root, args);
        assert_eq!(run.code, 0, "{args:?}: {}{}", run.out, run.err);
        run.out
    }

    /// Brings the origin's branch over and replays it.
    fn up(&self, code: i32) -> Run {
        let from = self.path("o", "etc/git-devops/repo");
        let to = self.path("t", "etc/git-devops/repo");
        sh(
            "git --git-dir \"$1\" fetch -q \"$2\" +refs/heads/web:refs/remotes/o/web",
            &[to.to_str().unwrap(), from.to_str().unwrap()],
        );
        let run = self.gdo("t", &["up", "--offline", "--to", "o/web"]);
        assert_eq!(run.code, code, "{}{}", run.out, run.err);
        run
    }

    /// Adds a command that installs a version, and checks in.
    fn install(&self, version: &str, options: &[&str]) {
        let deb = self.deb(version);
        let name = deb.file_name().unwrap().to_str().unwrap();
        let input = format!("${{in}}/{name}");
        let args = [&["exec", "--input", deb.to_str().unwrap()], options, &["--", "dpkg", "-i", &input]].concat();
        self.ok("o", &args);
        self.ok("o", &["ci"]);
    }

    fn chroot(&self, root: &str, script: &str) -> String {
        sh("exec chroot \"$1\" sh -ec \"$2\"", &[self.path(root, "").to_str().unwrap(), script])
    }

    fn read(&self, root: &str, path: &str) -> String {
        fs::read_to_string(self.path(root, path)).unwrap()
    }

    /// Returns what dpkg says of 'tiny'.
    fn state(&self, root: &str) -> String {
        self.chroot(root, "dpkg-query -W -f '${Status} ${Version}' tiny")
    }
}

#[test]
fn commands_run_in_the_root_that_is_named_and_files_are_laid_there() {
    if !is_possible() {
        return;
    }
    let pair = Pair::new();
    fs::write(pair.path("o", "etc/own"), "2\n").unwrap();
    pair.ok("o", &["snap", "/etc/own"]);
    pair.ok("o", &["exec", "--", "sh", "-c", "cat /etc/own >> /root/ran; ls / > /root/top"]);
    pair.ok("o", &["ci"]);
    for _ in 0..2 {
        pair.up(0);
        assert_eq!((pair.read("t", "etc/own"), pair.read("t", "root/ran")), ("2\n".into(), "2\n".into()));
        // What the command saw as '/' is this root.
        assert!(pair.read("t", "root/top").lines().all(|name| pair.path("t", name).symlink_metadata().is_ok()));
        assert!(!pair.read("t", "root/top").contains("proc"));
        let status = pair.ok("t", &["status"]);
        assert!(status.contains("congruent host of type web") && status.contains("nothing differs"), "{status}");
    }
    fs::write(pair.path("t", "etc/own"), "by hand\n").unwrap();
    assert!(pair.ok("t", &["status"]).contains("M etc/own"));
}

#[test]
fn an_upgrade_asks_nothing_and_keeps_the_owned_conffile() {
    if !is_possible() {
        return;
    }
    let pair = Pair::new();
    pair.install("2", &[]);
    pair.up(0);
    for root in ["o", "t"] {
        assert_eq!(pair.state(root), "install ok installed 2");
        assert_eq!(pair.chroot(root, "dpkg --audit"), "");
        let files = ["etc/tiny.conf", "etc/tiny.conf.dpkg-dist", "usr/bin/tiny"].map(|path| pair.read(root, path));
        assert_eq!(files, ["ours\n", "package 2\n", "#!/bin/sh\necho 2\n"]);
        let status = pair.ok(root, &["status"]);
        assert!(status.contains("leftover: 'etc/tiny.conf.dpkg-dist'") && status.contains("nothing differs"), "{status}");
    }
}

#[test]
fn a_package_that_is_configured_by_half_is_noticed_although_the_command_said_all_is_well() {
    if !is_possible() {
        return;
    }
    let pair = Pair::new();
    pair.build("3", "package 1\n", "test ! -e /etc/broken");
    fs::copy(pair.deb("3"), pair.path("t", "tmp/3.deb")).unwrap();
    fs::copy(pair.deb("3"), pair.path("o", "tmp/3.deb")).unwrap();
    fs::write(pair.path("t", "etc/broken"), "").unwrap();
    pair.ok("o", &["exec", "--", "sh", "-c", "dpkg -i /tmp/3.deb || true"]);
    pair.ok("o", &["ci"]);
    for _ in 0..2 {
        let halted = pair.up(12);
        assert!(halted.err.contains("halted: packages") && halted.err.contains("tiny: half-configured"), "{}", halted.err);
    }
    let status = pair.ok("t", &["status"]);
    assert!(status.contains("unsettled: 'tiny'") && status.contains("halted: packages"), "{status}");
    fs::remove_file(pair.path("t", "etc/broken")).unwrap();
    pair.chroot("t", "dpkg --configure -a");
    pair.up(0);
    assert!(!pair.ok("t", &["status"]).contains("unsettled"));
    // What was so before is told, and no obstacle: the next release may repair it.
    fs::write(pair.path("t", "etc/broken"), "").unwrap();
    pair.chroot("t", "dpkg --unpack /tmp/3.deb");
    fs::write(pair.path("o", "etc/own"), "2\n").unwrap();
    pair.ok("o", &["snap", "/etc/own"]);
    pair.ok("o", &["exec", "--", "sh", "-c", "rm -f /etc/broken; dpkg --configure -a"]);
    pair.ok("o", &["ci"]);
    assert!(pair.up(0).out.contains("package not installed in full: tiny: unpacked"));
    assert_eq!(pair.state("t"), "install ok installed 3");
}

#[test]
fn a_killed_installation_is_resumed() {
    if !is_possible() {
        return;
    }
    let pair = Pair::new();
    pair.build("3", "package 1\n", "touch /tmp/begun; while test -e /tmp/wait; do sleep 0.1; done");
    pair.install("3", &[]);
    fs::write(pair.path("t", "tmp/wait"), "").unwrap();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| pair.up(12));
        let end = Instant::now() + Duration::from_secs(30);
        while !pair.path("t", "tmp/begun").exists() {
            assert!(Instant::now() < end, "it never began");
            std::thread::sleep(Duration::from_millis(50));
        }
        // The processes whose root is this one: dpkg and its script.
        let script = "top=$(readlink -f \"$1\"); for p in /proc/[0-9]*; do test \"$(readlink $p/root)\" != \"$top\" || kill -9 ${p#/proc/}; done 2>/dev/null || true";
        sh(script, &[pair.path("t", "").to_str().unwrap()]);
        let halted = run.join().unwrap();
        assert!(halted.err.contains("command-failed"), "{}", halted.err);
    });
    assert!(pair.ok("t", &["status"]).contains("unsettled"));
    fs::remove_file(pair.path("t", "tmp/wait")).unwrap();
    pair.ok("t", &["resume"]);
    assert_eq!((pair.state("t"), pair.read("t", "etc/tiny.conf")), ("install ok installed 3".into(), "ours\n".into()));
    assert!(!pair.ok("t", &["status"]).contains("unsettled"));
}

#[test]
fn an_installation_goes_on_when_its_run_is_killed() {
    if !is_possible() {
        return;
    }
    for guard in [&[][..], &["--unless", "test \"$(dpkg-query -W -f '${Version} ${db:Status-Status}' tiny)\" = '3 installed'"]] {
        let pair = Pair::new();
        pair.build("3", "package 1\n", "echo begun; touch /tmp/begun; while test -e /tmp/wait; do sleep 0.1; echo more; done");
        pair.install("3", guard);
        fs::write(pair.path("t", "tmp/wait"), "").unwrap();
        std::thread::scope(|scope| {
            let run = scope.spawn(|| pair.up(-1));
            let end = Instant::now() + Duration::from_secs(30);
            while !pair.path("t", "tmp/begun").exists() {
                assert!(Instant::now() < end, "it never began");
                std::thread::sleep(Duration::from_millis(50));
            }
            let top = pair.path("t", "");
            let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline | grep -q \"gdo --root $1 up\" && kill -9 ${p#/proc/}; done 2>/dev/null || true";
            sh(script, &[top.to_str().unwrap()]);
            run.join().unwrap();
        });
        for _ in 0..2 {
            let halted = pair.up(12);
            assert!(halted.err.contains("command-running"), "{}", halted.err);
        }
        fs::remove_file(pair.path("t", "tmp/wait")).unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        while pair.state("t") != "install ok installed 3" {
            assert!(Instant::now() < end, "it was ended by what it says: {}", pair.state("t"));
            std::thread::sleep(Duration::from_millis(50));
        }
        // Its last process ends.
        let mut run = pair.gdo("t", &["up", "--offline", "--to", "o/web"]);
        while run.err.contains("command-running") && Instant::now() < end {
            run = pair.gdo("t", &["up", "--offline", "--to", "o/web"]);
        }
        if guard.is_empty() {
            assert!(run.code == 12 && run.err.contains("command-unknown"), "{}", run.err);
            pair.ok("t", &["resume", "--done"]);
        } else {
            assert!(run.code == 0 && run.out.contains("not needed"), "{}{}", run.out, run.err);
        }
        assert_eq!((pair.state("t"), pair.read("t", "etc/tiny.conf")), ("install ok installed 3".into(), "ours\n".into()));
        assert!(!pair.ok("t", &["status"]).contains("unsettled"));
    }
}

#[test]
fn nothing_is_laid_down_while_dpkg_is_at_work() {
    if !is_possible() {
        return;
    }
    let pair = Pair::new();
    fs::write(pair.path("o", "etc/own"), "2\n").unwrap();
    pair.ok("o", &["snap", "/etc/own"]);
    pair.ok("o", &["ci"]);
    pair.build("3", "package 1\n", "touch /tmp/begun; while test -e /tmp/wait; do sleep 0.1; done");
    fs::copy(pair.deb("3"), pair.path("t", "tmp/3.deb")).unwrap();
    fs::write(pair.path("t", "tmp/wait"), "").unwrap();
    let repo = pair.path("t", "etc/git-devops/repo");
    let wait = |seconds: &str| sh("git --git-dir \"$1\" config devops.dpkgwait \"$2\"", &[repo.to_str().unwrap(), seconds]);
    wait("0");
    std::thread::scope(|scope| {
        let dpkg = scope.spawn(|| pair.chroot("t", "dpkg --force-confold -i /tmp/3.deb"));
        let end = Instant::now() + Duration::from_secs(30);
        while !pair.path("t", "tmp/begun").exists() {
            assert!(Instant::now() < end, "it never began");
            std::thread::sleep(Duration::from_millis(50));
        }
        let refused = pair.up(7);
        assert!(refused.err.contains("dpkg or apt is at work here"), "{}", refused.err);
        assert_eq!(pair.read("t", "etc/own"), "1\n");
        wait("60");
        let waiting = scope.spawn(|| pair.up(0));
        std::thread::sleep(Duration::from_millis(500));
        assert!(!waiting.is_finished());
        assert_eq!(pair.read("t", "etc/own"), "1\n");
        fs::remove_file(pair.path("t", "tmp/wait")).unwrap();
        waiting.join().unwrap();
        dpkg.join().unwrap();
    });
    assert_eq!((pair.read("t", "etc/own"), pair.state("t")), ("2\n".into(), "install ok installed 3".into()));
}

#[test]
fn diversions_and_statoverrides_are_respected() {
    if !is_possible() {
        return;
    }
    let pair = Pair::new();
    for root in ["o", "t"] {
        // By the name that dpkg has for it where /usr is merged.
        pair.chroot(
            root,
            "dpkg-divert --local --rename --add /usr/bin/tiny; dpkg-statoverride --update --add root adm 0640 /etc/tiny.conf",
        );
    }
    fs::write(pair.path("o", "usr/bin/tiny"), "#!/bin/sh\necho ours\n").unwrap();
    pair.ok("o", &["snap", "/usr/bin/tiny", "/etc/tiny.conf"]);
    pair.ok("o", &["ci"]);
    // The target has the mode already, by its statoverride; what the commit changes is as the commit says.
    pair.up(0);
    pair.install("2", &[]);
    pair.up(0);
    let files = ["usr/bin/tiny", "usr/bin/tiny.distrib"].map(|path| pair.read("t", path));
    assert_eq!(files, ["#!/bin/sh\necho ours\n", "#!/bin/sh\necho 2\n"]);
    assert_eq!(sh("stat -c '%a %g' \"$1\"", &[pair.path("t", "etc/tiny.conf").to_str().unwrap()]), "640 4\n");
    assert!(!pair.ok("t", &["status"]).contains("statoverride"));
    pair.chroot("t", "dpkg-statoverride --remove /etc/tiny.conf; dpkg-statoverride --add root root 0600 /etc/tiny.conf");
    assert!(pair.ok("t", &["status"]).contains("statoverride: 'etc/tiny.conf': dpkg-statoverride says root:root 0600"));
    // The name that the diversion leads to is the package's.
    sh("rm \"$1\"", &[pair.path("t", "usr/bin/tiny.distrib").to_str().unwrap()]);
    fs::write(pair.path("o", "usr/bin/tiny.distrib"), "#!/bin/sh\necho wrong\n").unwrap();
    pair.ok("o", &["snap", "/usr/bin/tiny.distrib"]);
    pair.ok("o", &["ci"]);
    let halted = pair.up(12);
    assert!(halted.err.contains("halted: packages") && halted.err.contains("'usr/bin/tiny.distrib'"), "{}", halted.err);
    assert!(!pair.path("t", "usr/bin/tiny.distrib").exists());
}

#[test]
fn adopt_tells_whose_a_file_is_and_converge_keeps_off_what_is_diverted() {
    if !is_possible() {
        return;
    }
    let pair = Pair::new();
    fs::write(pair.path("o", "usr/bin/tiny"), "#!/bin/sh\necho ours\n").unwrap();
    fs::write(pair.path("o", "usr/bin/other.distrib"), "ours\n").unwrap();
    fs::write(pair.path("o", "etc/tiny.conf"), "ours, newer\n").unwrap();
    pair.ok("o", &["snapshot", "-q", "/usr/bin/tiny", "/usr/bin/other.distrib", "/etc/tiny.conf", "/var/lib/dpkg/status"]);
    assert!(pair.ok("o", &["status"]).contains("packages: database"));
    pair.chroot("t", "dpkg-divert --local --no-rename --add /bin/other");
    let (from, to) = (pair.path("o", "etc/git-devops/repo"), pair.path("t", "etc/git-devops/repo"));
    let fetch = "git --git-dir \"$1\" fetch -q \"$2\" +refs/heads/web:refs/remotes/o/web";
    sh(fetch, &[to.to_str().unwrap(), from.to_str().unwrap()]);
    let told = pair.ok("t", &["adopt", "--begin", "o/web"]);
    for line in
        ["M etc/tiny.conf (conffile of tiny)", "M usr/bin/tiny (packaged of tiny)", "D usr/bin/other.distrib (diverted-to)"]
    {
        assert!(told.contains(line), "{told}");
    }
    let run = pair.gdo("t", &["converge", "--offline", "--to", "o/web"]);
    assert!(!pair.path("t", "usr/bin/other.distrib").exists(), "{}{}", run.out, run.err);
    assert_eq!(pair.read("t", "etc/tiny.conf"), "ours, newer\n");
}
