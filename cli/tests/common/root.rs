//! A small system below a directory, made of the programs of this machine.

use std::path::Path;
use std::process::{Command, Stdio};

const MAKE_ROOT: &str = r#"
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p "$1"; cd "$1"
mkdir -p usr/bin usr/sbin usr/lib usr/lib64 etc var/lib/dpkg/info var/lib/dpkg/updates var/lib/dpkg/triggers var/log root dev tmp
for dir in bin sbin lib lib64; do ln -s usr/$dir $dir; done
for program in $2; do
    file=$(readlink -f "$(command -v $program)")
    cp "$file" usr/bin/$program
    ldd "$file" 2>/dev/null | grep -o '/[^ ]*' | sort -u | while read -r lib; do cp -L --parents "$lib" . 2>/dev/null || true; done || true
done
ln -s ../bin/ldconfig usr/sbin/ldconfig; ln -s ../bin/start-stop-daemon usr/sbin/start-stop-daemon
mknod dev/null c 1 3; chmod 666 dev/null
touch var/lib/dpkg/status var/lib/dpkg/available
echo root:x:0:0::/root:/bin/sh > etc/passwd
printf 'root:x:0:\nadm:x:4:\n' > etc/group
"#;

/// Makes one at `dir` that has `programs`, separated by spaces, and the libraries that they need.
pub fn make_root(dir: &Path, programs: &str) {
    sh(MAKE_ROOT, &[dir.to_str().unwrap(), programs]);
}

/// Runs a script, and returns what it said.
pub fn sh(script: &str, args: &[&str]) -> String {
    let output = Command::new("sh").args(["-ec", script, "sh"]).args(args).stdin(Stdio::null()).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {err}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
