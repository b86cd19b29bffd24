//! Signatures of holders and hosts, by `ssh-keygen`: the only place that starts it.
//!
//! What is signed, and by whom: `docs/formats/holders.md`, `docs/formats/report.md`.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::durable::{self, Scratch};
use crate::error::{Context, Error, Kind, Result};

/// For what a key signs: a signature counts for nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// What a holder promises.
    Holder,
    /// What a host tells of itself.
    Report,
}

impl Purpose {
    fn namespace(self) -> &'static str {
        match self {
            Self::Holder => "git-devops-holder",
            Self::Report => "git-devops-report",
        }
    }
}

/// Longest signature that is looked at; those of ed25519 keys have some 300 bytes.
pub const MAX_SIGNATURE: usize = 4096;
const WHO: &str = "holder";
/// What the name of a directory begins with in which a key is made.
const SCRATCH: &str = "new-key-";

/// Makes a key pair in `path` and `path.pub`, unless it is there; durable on return.
pub fn make_key(path: &Path) -> Result<()> {
    let public = path.with_extension("pub");
    if durable::is_there(path) && durable::is_there(&public) {
        return Ok(());
    }
    let what = || format!("cannot make the key '{}'", path.display());
    if durable::is_there(path) {
        // The private one was there first; nothing may take its place.
        let text = ssh_keygen(["-y", "-f"].map(OsStr::new).into_iter().chain([path.as_os_str()]), &[]).context(what)?.stdout;
        return durable::publish(&public, &text, 0o644);
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    Scratch::clear(dir, SCRATCH)?;
    let scratch = Scratch::make(dir, SCRATCH).context(what)?;
    make_key_in(scratch.path(), path, &public).context(what)
}

fn make_key_in(scratch: &Path, path: &Path, public: &Path) -> Result<()> {
    let new = scratch.join("key");
    let args = ["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"];
    ssh_keygen(args.iter().map(OsStr::new).chain([new.as_os_str()]), &[])?;
    // The public one last: with it the pair counts.
    durable::publish(path, &durable::read(&new)?, 0o600)?;
    durable::publish(public, &durable::read(&new.with_extension("pub"))?, 0o644)
}

/// Returns the public key of the pair in `path`: type and key, separated by a blank.
pub fn public_key(path: &Path) -> Result<String> {
    let path = path.with_extension("pub");
    let text = durable::read(&path).context(|| format!("cannot read '{}'", path.display()))?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let words: Vec<&str> = text.split_whitespace().take(2).collect();
    match words[..] {
        ["ssh-ed25519", _] => Ok(words.join(" ")),
        _ => Err(Error::new(Kind::Corrupt, format!("'{}' is no ed25519 key", path.display()))),
    }
}

/// Signs `text` with the key in `path`.
pub fn sign(path: &Path, purpose: Purpose, text: &[u8]) -> Result<Vec<u8>> {
    let args = ["-Y", "sign", "-q", "-n", purpose.namespace(), "-f"];
    let output = ssh_keygen(args.iter().map(OsStr::new).chain([path.as_os_str()]), text);
    Ok(output.context(|| format!("cannot sign with '{}'", path.display()))?.stdout)
}

/// Fails unless `signature` is one of `text` by the owner of `public_key`. Uses files in the directory `scratch`, which is ours alone.
pub fn verify(scratch: &Path, purpose: Purpose, public_key: &str, text: &[u8], signature: &[u8]) -> Result<()> {
    let what = || "the signature is not good";
    if signature.len() > MAX_SIGNATURE {
        return Err(Error::new(Kind::Refused, format!("it has {} bytes", signature.len()))).context(what);
    }
    let (allowed, signed) = (scratch.join("allowed"), scratch.join("signature"));
    durable::publish(&allowed, format!("{WHO} namespaces=\"{}\" {public_key}\n", purpose.namespace()).as_bytes(), 0o600)?;
    durable::publish(&signed, signature, 0o600)?;
    let args = ["-Y", "verify", "-q", "-n", purpose.namespace(), "-I", WHO, "-f"].map(OsStr::new);
    let paths = [allowed.as_os_str(), OsStr::new("-s"), signed.as_os_str()];
    ssh_keygen(args.into_iter().chain(paths), text).map(drop).map_err(|error| error.with_kind(Kind::Refused)).context(what)
}

#[allow(clippy::disallowed_methods)] // the one place for this program
fn ssh_keygen<'a>(args: impl Iterator<Item = &'a OsStr>, input: &[u8]) -> Result<Output> {
    let mut command = Command::new("ssh-keygen");
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C").args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let what = || "cannot run ssh-keygen; is OpenSSH installed?";
    let mut child = command.spawn().context(what)?;
    // It reads all of it before it writes.
    let sent = child.stdin.take().map(|mut stdin| stdin.write_all(input));
    let output = child.wait_with_output().context(what)?;
    match output.status.success() && sent.is_none_or(|sent| sent.is_ok()) {
        true => Ok(output),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let said = said.lines().next_back().unwrap_or("nothing");
            Err(Error::new(Kind::Io, format!("ssh-keygen says: {}", said.escape_debug())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_counts_for_its_text_and_its_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("a"), dir.path().join("b"));
        for path in [&ours, &theirs] {
            make_key(path).unwrap();
        }
        let (key, other_key) = (public_key(&ours).unwrap(), public_key(&theirs).unwrap());
        make_key(&ours).unwrap();
        assert_eq!(public_key(&ours).unwrap(), key, "a key that is there stays");
        let signature = sign(&ours, Purpose::Holder, b"text").unwrap();
        verify(dir.path(), Purpose::Holder, &key, b"text", &signature).unwrap();
        let check = |key: &str, text: &[u8], signature: &[u8]| {
            verify(dir.path(), Purpose::Holder, key, text, signature).unwrap_err().kind()
        };
        assert_eq!(check(&other_key, b"text", &signature), Kind::Refused);
        assert_eq!(check(&key, b"texts", &signature), Kind::Refused);
        assert_eq!(check(&key, b"text", b""), Kind::Refused);
        assert_eq!(check(&key, b"text", &signature[..signature.len() / 2]), Kind::Refused);
        assert_eq!(check(&key, b"text", &[b'x'; MAX_SIGNATURE + 1]), Kind::Refused);
        // The same key for another purpose.
        let report = sign(&ours, Purpose::Report, b"text").unwrap();
        assert_eq!(check(&key, b"text", &report), Kind::Refused);
        let args = ["-Y", "sign", "-q", "-n", "file", "-f"].map(OsStr::new);
        let other = ssh_keygen(args.into_iter().chain([ours.as_os_str()]), b"text").unwrap().stdout;
        assert_eq!(check(&key, b"text", &other), Kind::Refused);
    }
}
