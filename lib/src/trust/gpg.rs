//! The one place that starts gpgv, gpg and gpgconf.
//!
//! gpgv gets exactly the keys that may have signed, nothing of the caller's environment, and no home. What it says for people is not read; what it says
//! for programs is read by [`decode_status`], which takes one good signature and nothing else.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Fingerprint;
use super::openpgp::{Certificate, bad_signature, check_signature};
use crate::child;
use crate::durable;
use crate::error::{Context, Error, Kind, Result};

/// As much is read of what gpgv says.
const MAX_STATUS: u64 = 64 << 10;
const PREFIX: &str = "[GNUPG:] ";
/// SHA-256, SHA-384, SHA-512.
const DIGESTS: [&str; 3] = ["8", "9", "10"];
/// A signature over bytes.
const CLASS: &str = "00";

/// Returns who of `keys` signed `text`; anything but one good signature is refused. Uses files in `scratch`, which is ours alone.
pub fn verify<'a>(
    scratch: &Path,
    keys: impl Iterator<Item = &'a Certificate>,
    text: &[u8],
    signature: &[u8],
) -> Result<Fingerprint> {
    check_signature(signature)?;
    let keys: Vec<u8> = keys.flat_map(|key| key.bytes.iter().copied()).collect();
    let files = [("keys.gpg", &keys[..]), ("signature.gpg", signature), ("text", text)];
    let files = files.map(|(name, bytes)| (scratch.join(name), bytes));
    for (path, bytes) in &files {
        durable::empty_unsynced(path)?;
        durable::append_unsynced(path, bytes)?;
    }
    let [(keys, _), (signature, _), (text, _)] = &files;
    let args = ["--homedir", "/nonexistent", "--weak-digest", "SHA1", "--status-fd", "1", "--keyring"].map(OsStr::new);
    let files = [keys.as_os_str(), OsStr::new("--"), signature.as_os_str(), text.as_os_str()];
    let mut command = program("gpgv");
    command.args(args).args(files).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let what = || "cannot run gpgv; is it installed? (Debian has it in the package 'gpgv')";
    let mut child = command.spawn().context(what)?;
    let mut status = Vec::new();
    let said = child.stdout.take().map(|pipe| pipe.take(MAX_STATUS).read_to_end(&mut status));
    let ended = child.wait().context(what)?;
    said.transpose().context(what)?;
    match ended.code() {
        Some(code) => decode_status(code == 0, &status),
        None => Err(bad_signature("gpgv was killed by a signal".to_owned())),
    }
}

/// Returns who made the one good signature of which gpgv tells in `status`; `is_good` is what it says by its exit code.
pub fn decode_status(is_good: bool, status: &[u8]) -> Result<Fingerprint> {
    let text = std::str::from_utf8(status).map_err(|_| bad_signature("gpgv says what is no text".to_owned()))?;
    let said: Vec<Vec<&str>> =
        text.lines().filter_map(|line| line.strip_prefix(PREFIX)).map(|line| line.split(' ').collect()).collect();
    for (word, why) in BAD {
        if said.iter().any(|words| words[0] == *word) {
            return Err(bad_signature((*why).to_owned()));
        }
    }
    let count = |word: &str| said.iter().filter(|words| words[0] == word).count();
    if !is_good || ["NEWSIG", "GOODSIG", "VALIDSIG"].iter().any(|word| count(word) != 1) {
        return Err(bad_signature("gpgv does not say that it is good".to_owned()));
    }
    let valid = said.iter().find(|words| words[0] == "VALIDSIG").map(Vec::as_slice).unwrap_or_default();
    // Word, key, date, time, expiry, version, reserved, algorithm, digest, class, primary key.
    let [_, _, _, _, _, _, _, _, digest, class, primary] = valid else {
        return Err(bad_signature("gpgv does not say whose it is".to_owned()));
    };
    if !DIGESTS.contains(digest) {
        return Err(bad_signature(format!(
            "its digest is number {} of OpenPGP, which is weak or unknown",
            digest.escape_debug()
        )));
    }
    if *class != CLASS {
        return Err(bad_signature("it is of another class than one over bytes".to_owned()));
    }
    primary.parse().map_err(|_| bad_signature("gpgv does not say whose it is".to_owned()))
}

/// What gpgv says of a signature that does not count, and what that means.
const BAD: &[(&str, &str)] = &[
    ("BADSIG", "what it signs was changed"),
    ("REVKEYSIG", "its key was revoked by its owner"),
    ("EXPKEYSIG", "its key has expired"),
    ("EXPSIG", "it has expired"),
    ("NO_PUBKEY", "it was made by a key that is not known here"),
    ("ERRSIG", "gpgv cannot check it"),
    ("KEYREVOKED", "its key was revoked by its owner"),
    ("NODATA", "it is not a signature"),
];

/// Whose key signs, and what gpg needs of the person's environment to get at it.
#[derive(Clone, Debug)]
pub struct Signer {
    /// The key, in any of gpg's notations.
    pub key: String,
    /// Where gpg's home, its agent and the terminal are.
    pub environment: Vec<(OsString, OsString)>,
}

/// Signs `text`; returns an OpenPGP packet. gpg may ask the person for a passphrase.
pub fn sign(signer: &Signer, text: &[u8]) -> Result<Vec<u8>> {
    let what = || format!("cannot sign with key '{}'", signer.key);
    let mut command = program("gpg");
    command.envs(signer.environment.iter().map(|(name, value)| (name, value)));
    command.args(["--batch", "--quiet", "--no-armor", "--digest-algo", "SHA512", "--local-user", &signer.key]);
    command.args(["--output", "-", "--detach-sign"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context(|| "cannot run gpg; is it installed? (Debian has it in the package 'gnupg')")?;
    // It reads all of it before it writes.
    let sent = child.stdin.take().map(|mut stdin| stdin.write_all(text));
    let output = child.wait_with_output().context(what)?;
    if !output.status.success() || sent.is_some_and(|sent| sent.is_err()) {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let said = said.lines().next().unwrap_or("nothing").trim_start_matches("gpg: ");
        return Err(Error::new(Kind::Io, format!("gpg says: {}", said.escape_debug()))).context(what);
    }
    check_signature(&output.stdout).map_err(|error| error.with_kind(Kind::Io)).context(what)?;
    Ok(output.stdout)
}

/// As long a secret is decrypted, in bytes; and so much of a key, and of a message, is read.
pub const MAX_SECRET: usize = 64 << 10;

/// Encrypts `text` to all keys in the files `keys`, each as `gpg --export` writes it; returns an armored message. Uses `scratch`, which is ours alone.
pub fn encrypt(scratch: &Path, keys: &[PathBuf], text: &[u8]) -> Result<Vec<u8>> {
    let what = || "cannot encrypt the secret";
    if text.len() > MAX_SECRET {
        return Err(Error::new(Kind::Usage, format!("it has more than {MAX_SECRET} bytes"))).context(what);
    }
    let mut args = vec!["--no-keyring", "--trust-model", "always", "--armor"].into_iter().map(OsStr::new).collect::<Vec<_>>();
    for key in keys {
        args.extend([OsStr::new("--recipient-file"), key.as_os_str()]);
    }
    args.extend(["--output", "-", "--encrypt"].map(OsStr::new));
    let message = at_home(scratch, &args, text).context(what)?;
    check_message(&message).map_err(|error| error.with_kind(Kind::Io)).context(what)?;
    Ok(message)
}

/// Decrypts an armored message with a secret key in `home`, the directory of this host's own gpg.
pub fn decrypt(home: &Path, message: &[u8]) -> Result<Vec<u8>> {
    check_message(message)?;
    if !durable::is_dir(home) {
        let message = "this host has no key for secrets; 'gdo secret key' makes one, and the secret is to be encrypted to it";
        return Err(Error::new(Kind::NotFound, message));
    }
    let text = at_home(home, &["--max-output", MAX_OUTPUT, "--output", "-", "--decrypt"].map(OsStr::new), message);
    text.map_err(|error| error.with_kind(Kind::Refused))
        .context(|| "cannot decrypt the secret; is it encrypted to this host's key?")
}

/// Makes a key for the host `name` in `home`, if there is none, and returns its public part, armored.
pub fn host_key(home: &Path, name: &str) -> Result<Vec<u8>> {
    let what = || format!("cannot make a key in '{}'", home.display());
    durable::create_private_dir(home)?;
    let export = || at_home(home, &["--armor", "--export"].map(OsStr::new), b"").context(what);
    let there = export()?;
    if !there.is_empty() {
        return Ok(there);
    }
    let args = ["--passphrase", "", "--pinentry-mode", "loopback", "--quick-gen-key", name, "future-default", "default", "0"];
    at_home(home, &args.map(OsStr::new), b"").context(what)?;
    durable::sync_filesystem(home)?;
    export()
}

const MAX_OUTPUT: &str = "65536";
const ARMOR: &[u8] = b"-----BEGIN PGP MESSAGE-----\n";

/// Refuses what is no armored message: what is stored in its place may be the secret itself.
fn check_message(message: &[u8]) -> Result<()> {
    match message.starts_with(ARMOR) && message.len() <= 4 * MAX_SECRET {
        true => Ok(()),
        false => Err(Error::new(Kind::Refused, "what is stored is not an encrypted message; replace it with 'gdo secret add'")),
    }
}

/// Runs gpg with a home of ours and nothing of the caller's, and returns what it writes; its agent is stopped, so that no key stays in memory.
fn at_home(home: &Path, args: &[&OsStr], input: &[u8]) -> Result<Vec<u8>> {
    let mut command = program("gpg");
    command
        .arg("--homedir")
        .arg(home)
        .args(["--no-options", "--batch", "--quiet", "--no-tty", "--no-auto-key-locate"])
        .args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().context(|| "cannot run gpg; is it installed? (Debian has it in the package 'gnupg')")?;
    let output = child::feed(child, input);
    let mut stop = program("gpgconf");
    let _ = stop.arg("--homedir").arg(home).args(["--kill", "gpg-agent"]).stdin(Stdio::null()).stderr(Stdio::null()).status();
    let output = output?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let said = said.lines().last().unwrap_or("nothing").trim_start_matches("gpg: ");
        return Err(Error::new(Kind::Io, format!("gpg says: {}", said.escape_debug())));
    }
    Ok(output.stdout)
}

#[allow(clippy::disallowed_methods)] // the one place for these three
fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C").current_dir("/");
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    const KEY: &str = "C75BAF49E4B21DFC133BB6BB7043E87856EED5F9";

    fn good() -> String {
        format!(
            "[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG 7043E87856EED5F9 Ann <a@x>\n[GNUPG:] VALIDSIG {KEY} 2026-11-23 1795395401 0 4 0 22 10 00 {KEY}\n"
        )
    }

    #[test]
    fn one_good_signature_and_nothing_else_counts() {
        assert_eq!(decode_status(true, good().as_bytes()).unwrap().to_string(), KEY);
        let primary = "0123456789ABCDEF0123456789ABCDEF01234567";
        let by_subkey = good().replace(&format!("00 {KEY}"), &format!("00 {primary}"));
        assert_eq!(decode_status(true, by_subkey.as_bytes()).unwrap().to_string(), primary, "the primary key counts");
        let mut bad: Vec<(bool, String)> = vec![
            (false, good()),
            (true, String::new()),
            (true, good().repeat(2)),
            (true, good().replace("[GNUPG:] NEWSIG\n", "")),
            (true, good().replace("GOODSIG", "goodsig")),
            (true, good().replace("VALIDSIG", "validsig")),
            (true, good().replace("[GNUPG:] VALIDSIG", "gpgv: [GNUPG:] VALIDSIG")),
            (true, good().replace(" 10 00 ", " 2 00 ")),
            (true, good().replace(" 10 00 ", " 10 01 ")),
            (true, good().replace(" 10 00 ", " 10 ")),
            (true, good().replace(&format!("00 {KEY}"), "00 7043E87856EED5F9")),
        ];
        bad.extend(BAD.iter().map(|(word, _)| (true, format!("{}[GNUPG:] {word} x\n", good()))));
        for (is_good, status) in bad {
            let error = decode_status(is_good, status.as_bytes()).unwrap_err();
            assert_eq!((error.kind(), error.reason()), (Kind::Refused, Some(Reason::Signature)), "{status}");
        }
    }

    #[test]
    fn gpgv_gets_nothing_of_the_environment() {
        let command = program("gpgv");
        let names: Vec<_> = command.get_envs().map(|(name, _)| name.to_str().unwrap().to_owned()).collect();
        assert_eq!(names, ["LC_ALL", "PATH"]);
    }
}
