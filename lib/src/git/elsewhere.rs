//! Refs of another host, looked at and not fetched.

use std::ffi::OsStr;
use std::io::Read;
use std::process::Stdio;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::{Git, Oid};
use crate::child::Words;
use crate::error::{Context, Error, Kind, Result};

/// How long the other host may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than this it need not tell, in bytes.
const MOST: u64 = 1 << 20;
/// How long git's last words may take after its end.
const LAST_WORDS: Duration = Duration::from_millis(200);

impl Git {
    /// Asks the host at `url`, which `ssh_command` reaches and where `upload_pack` answers, where its refs below `prefix` are; their names stay there.
    pub fn refs_elsewhere(&self, url: &str, upload_pack: &str, ssh_command: &OsStr, prefix: &str) -> Result<Vec<Oid>> {
        let (upload_pack, pattern) = (format!("--upload-pack={upload_pack}"), format!("{prefix}*"));
        let mut command = self.command(&["-c", "protocol.version=2", "ls-remote", "--refs", &upload_pack, url, &pattern]);
        command.env("GIT_SSH_COMMAND", ssh_command).env("GIT_SSH_VARIANT", "ssh").current_dir(self.git_dir());
        let what = || "cannot run git (is it installed?)";
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context(what)?;
        let said = Words::of(child.stderr.take());
        let (give, take) = channel();
        let output = child.stdout.take();
        std::thread::spawn(move || {
            let mut listed = Vec::new();
            let read = output.map_or(Ok(0), |output| output.take(MOST).read_to_end(&mut listed));
            drop(give.send(read.map(|_| listed)));
        });
        let listed = take.recv_timeout(PATIENCE);
        // It has told all that counts, or it never will.
        let _ = if listed.is_err() { child.kill() } else { Ok(()) };
        let status = child.wait().context(what)?;
        let listed = match listed {
            Ok(listed) => listed.context(|| "cannot read what git lists")?,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                return Err(Error::new(Kind::Io, format!("it did not tell its refs within {} seconds", PATIENCE.as_secs())));
            }
        };
        if !status.success() {
            let told = said.last_line(LAST_WORDS).unwrap_or_else(|| "git ls-remote failed without a word".to_owned());
            return Err(Error::new(Kind::Io, format!("git says: {told}")));
        }
        let of_line = |line: &[u8]| line.split(|&b| b == b'\t').next().and_then(|hex| Oid::from_hex(hex).ok());
        Ok(listed.split(|&b| b == b'\n').filter_map(of_line).collect())
    }
}
