//! The programs that the tests use, and the Debian packages that hold them.

use std::path::Path;
use std::process::Command;

use crate::command::{Context, Result, run, succeed};
use crate::ensure;

/// A program (or file) whose presence means that a package is there.
pub type Need = (&'static str, &'static str);

/// What `cargo xtask test` uses.
pub const TEST: &[Need] = &[
    ("git", "git"),
    ("mmdebstrap", "mmdebstrap"),
    ("getfattr", "attr"),
    ("setfacl", "acl"),
    ("setcap", "libcap2-bin"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("zstd", "zstd"),
    ("python3", "python3"),
    ("gcc", "gcc"),
    ("ssh", "openssh-client"),
    ("sshd", "openssh-server"),
    ("gpg", "gnupg"),
    ("gpgv", "gpgv"),
    ("strace", "strace"),
    ("prlimit", "util-linux"),
    ("ip", "iproute2"),
    ("systemd-nspawn", "systemd-container"),
    ("dpkg-scanpackages", "dpkg-dev"),
    ("mount", "mount"),
    ("tar", "tar"),
    ("/usr/bin/time", "time"),
    ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
    ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
];

/// Makes sure that every program is there: installs on Debian as root, and elsewhere fails naming them.
pub fn install(needs: &[&[Need]]) -> Result {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    ensure!(
        is_debian() && is_root(),
        "these Debian packages (or what corresponds to them here) are missing: {names}; install them and try again"
    );
    println!("installing {names}");
    if apt_install(&missing).is_err() {
        // The lists are missing or older than the archive: only now are they worth fetching.
        succeed(apt().arg("update"))?;
        apt_install(&missing)?;
    }
    Ok(())
}

/// Says whether this process may do what only root may.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns the code name of the running Debian, `bookworm` for example.
pub fn debian_suite() -> Result<String> {
    os_release("VERSION_CODENAME").ok_or_else(|| "cannot tell the release's name from '/etc/os-release'".into())
}

fn missing(needs: &[&[Need]]) -> Vec<&'static str> {
    needs.iter().copied().flatten().filter(|(program, _)| !exists(program)).map(|(_, package)| *package).collect()
}

fn exists(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    // An administrator's programs are there even where an ordinary user's PATH does not say so.
    let dirs = path.split(':').chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"]);
    dirs.map(|dir| Path::new(dir).join(program)).any(|file| file.is_file())
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-y"]);
    apt
}

fn apt_install(packages: &[&str]) -> Result {
    let outcome = run(apt().args(["install", "--no-install-recommends"]).args(packages))?;
    outcome.exits(0).map(drop).context(|| "cannot install packages")
}

fn is_debian() -> bool {
    let names = |key| os_release(key).is_some_and(|value| value.split(' ').any(|word| word == "debian"));
    names("ID") || names("ID_LIKE")
}

fn os_release(key: &str) -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(line.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_by_its_package() {
        let needs: &[Need] = &[("sh", "dash"), ("no-such-program", "its-package"), ("/etc/passwd", "base-passwd")];
        assert_eq!(missing(&[needs]), ["its-package"]);
    }
}
