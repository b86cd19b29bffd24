//! A release replaces programs that run meanwhile, the C library, git and the tool itself.
//!
//! The system has the programs of this machine and its own `/proc`, so this needs root rights and namespaces.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::common::root::{make_root, sh};

const PROGRAMS: &str = "sh sleep git";

struct System {
    temp: tempfile::TempDir,
}

impl System {
    /// Makes a system, owned with all its programs, and where its changes come from.
    fn new() -> Self {
        let system = Self { temp: tempfile::tempdir().unwrap() };
        let origin = system.path("o", "");
        make_root(&origin, PROGRAMS);
        system.add_gdo();
        fs::create_dir(origin.join("proc")).unwrap();
        sh("cp -a \"$1\" \"$2\"", &[origin.to_str().unwrap(), system.path("t", "").to_str().unwrap()]);
        system.at_origin("gdo --root o init -q --system --type web; gdo --root o snapshot -q usr/bin usr/lib usr/lib64");
        system.at_origin("gdo --root t init -q --system --type web");
        system.bring();
        // From outside, for the first time.
        system.at_origin("gdo --root t up -q --offline --to o/web");
        system
    }

    fn add_gdo(&self) {
        let gdo = env!("CARGO_BIN_EXE_gdo");
        let script = r#"cp "$1" usr/bin/gdo; ldd "$1" | grep -o '/[^ ]*' | sort -u | while read -r lib; do cp -L --parents "$lib" . 2>/dev/null || true; done || true"#;
        sh(&format!("cd '{}'; {script}", self.path("o", "").display()), &[gdo]);
    }

    fn path(&self, root: &str, path: &str) -> PathBuf {
        self.temp.path().join(root).join(path)
    }

    fn at_origin(&self, script: &str) {
        let bin = PathBuf::from(env!("CARGO_BIN_EXE_gdo")).parent().unwrap().display().to_string();
        sh(&format!("cd '{}'; PATH={bin}:$PATH; {script}", self.temp.path().display()), &[]);
    }

    /// Brings commits and chunks over.
    fn bring(&self) {
        self.at_origin(
            "git --git-dir t/etc/git-devops/repo fetch -q \"$PWD/o/etc/git-devops/repo\" +refs/heads/web:refs/remotes/o/web
            cp -a o/var/cache/git-devops/packs o/var/cache/git-devops/index t/var/cache/git-devops/",
        );
    }

    /// Returns a command inside the system, in namespaces of its own so that it has `/proc`.
    fn inside(&self, script: &str) -> Command {
        let root = self.path("t", "");
        let mut command = Command::new("unshare");
        command.args(["-mpf", "sh", "-ec", "mount -t proc proc \"$1/proc\"; exec chroot \"$1\" sh -ec \"$2\"", "sh"]);
        command.arg(root).arg(script).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    fn runs(&self, script: &str) -> (i32, String) {
        let output = self.inside(script).stdin(Stdio::null()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
    }
}

/// Ends what runs meanwhile, whatever becomes of the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.0.wait();
    }
}

fn is_possible() -> bool {
    let is = Command::new("unshare").args(["-mpf", "true"]).status().is_ok_and(|status| status.success());
    if !is {
        eprintln!("skipped: needs root and namespaces");
    }
    is
}

#[test]
fn what_runs_is_replaced_and_a_tool_that_does_not_start_is_not_taken() {
    if !is_possible() {
        return;
    }
    let system = System::new();
    let mut sleeping = Running(system.inside("sleep 600; true").stdin(Stdio::null()).process_group(0).spawn().unwrap());
    // Something behind an ELF file's end changes nothing of what it does.
    system.at_origin(
        "for file in o/usr/bin/sleep o/usr/bin/git o/usr/bin/sh o/usr/bin/gdo $(find o/usr/lib* o/lib* -name 'libc.so*' -o -name 'ld-linux*' | sort -u); do
            test -L $file || echo more >> $file
        done
        gdo --root o snap -q; gdo --root o ci -q",
    );
    system.bring();
    let before = fs::metadata(system.path("t", "usr/bin/gdo")).unwrap().ino();
    let (code, said) = system.runs("exec gdo up --offline --to o/web");
    assert_eq!(code, 0, "{said}");
    assert_ne!(fs::metadata(system.path("t", "usr/bin/gdo")).unwrap().ino(), before);
    assert!(sleeping.0.try_wait().unwrap().is_none(), "what ran goes on");
    let (code, said) = system.runs("gdo --version; git --version; gdo status --exit-code");
    assert_eq!(code, 0, "{said}");
    // One that does not start would be the last one.
    system.at_origin("printf '#!/bin/sh\\nexit 1\\n' > o/usr/bin/gdo; echo with > o/usr/bin/with; gdo --root o snap -q usr; gdo --root o ci -q");
    system.bring();
    let (code, said) = system.runs("exec gdo up --offline --to o/web");
    assert!(code == 12 && said.contains("does not pass '%s --version'"), "{code} {said}");
    assert!(!system.path("t", "usr/bin/with").exists(), "nothing of that commit is there");
    assert_eq!(system.runs("gdo --version >/dev/null").0, 0);
}
