//! What a host that follows its type asks of a file before that gets its name: the check that its attributes demand.
//!
//! Only who applies commits of a type that is followed runs such commands: whoever merely restores files of some repository runs nothing out of it.

use super::Host;
use super::run::{Ended, Ground, Job};
use crate::error::{Error, Kind, Result};
use crate::repo::attributes::{Attributes, Ownership};
use crate::repo::restore::Laying;
use crate::repo::scan::{join, split};
use crate::safepath::Dir;

/// What a validation may take, in seconds.
const TIMEOUT: u64 = 300;

/// Content as the repository's own [`Laying`] has it, and validations that are run.
pub struct Checked<'a> {
    content: &'a dyn Laying,
    ground: Ground,
    work_tree: &'a std::path::Path,
    /// Where this program lies in the work tree.
    own: Option<Vec<u8>>,
}

/// Who lays down a program of this name must be able to run it: one that does not even start could never be replaced by a better one.
const OWN_CHECK: &str = "%s --version";

impl Host<'_> {
    /// Returns how files of this host's type are laid down.
    pub(super) fn laying(&self) -> Checked<'_> {
        let places = &self.repo.places;
        Checked {
            content: &*self.repo.laying,
            ground: Ground::of(places),
            work_tree: &places.work_tree,
            own: own_path(&places.work_tree),
        }
    }

    /// Returns the check that the file at `path` has to pass: that of its attributes, or that of the program itself.
    pub(super) fn check_of(&self, path: &[u8], attributes: &Attributes) -> Option<String> {
        attributes.policy(path).validate.or_else(|| self.laying().check(path))
    }
}

impl Laying for Checked<'_> {
    fn content(&self, path: &[u8], ownership: Ownership, stored: &[u8]) -> Result<Option<Vec<u8>>> {
        self.content.content(path, ownership, stored)
    }

    fn is_as_stored(&self, path: &[u8], ownership: Ownership) -> bool {
        self.content.is_as_stored(path, ownership)
    }

    fn check(&self, path: &[u8]) -> Option<String> {
        (self.own.as_deref() == Some(path)).then(|| OWN_CHECK.to_owned())
    }

    fn validate(&self, path: &[u8], command: &str, _dir: &Dir, temp: &[u8]) -> Result<()> {
        let file = self.work_tree.join(path_of(&join(split(path).0, temp)));
        let words = words(command, self.ground.inner(&file).as_os_str().as_encoded_bytes());
        let job = Job { timeout: std::time::Duration::from_secs(TIMEOUT), ..Job::of(words) };
        let (ended, said) = self.ground.run(&job)?;
        if ended == Ended::Code(0) {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&said);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).map(crate::child::told).unwrap_or_default();
        let separator = if last.is_empty() { "" } else { ": " };
        Err(Error::new(Kind::Halted, format!("does not pass '{command}': {}{separator}{last}", ended.told())))
    }
}

/// Returns where the running program lies below `work_tree`, if it does.
fn own_path(work_tree: &std::path::Path) -> Option<Vec<u8>> {
    let own = std::env::current_exe().ok()?;
    Some(own.strip_prefix(work_tree).ok()?.as_os_str().as_encoded_bytes().to_vec())
}

fn path_of(path: &[u8]) -> &std::path::Path {
    use std::os::unix::ffi::OsStrExt;
    std::path::Path::new(std::ffi::OsStr::from_bytes(path))
}

/// Splits a command at its spaces; what follows 'sh -c' is one word. `%s` becomes `file`.
fn words(command: &str, file: &[u8]) -> Vec<Vec<u8>> {
    let command = command.trim();
    let words: Vec<&str> = match command.strip_prefix("sh -c ") {
        Some(script) => vec!["sh", "-c", script.trim()],
        None => command.split_ascii_whitespace().collect(),
    };
    let filled = |word: &str| word.split("%s").map(str::as_bytes).collect::<Vec<_>>().join(file);
    words.into_iter().map(filled).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_stands_where_the_command_wants_it() {
        for (command, want) in [
            ("sshd -t -f %s", &["sshd", "-t", "-f", "a b"][..]),
            (" test  --file=%s ", &["test", "--file=a b"]),
            ("sh -c  grep x \"%s\" || test -e %s", &["sh", "-c", "grep x \"a b\" || test -e a b"]),
        ] {
            let got: Vec<String> = words(command, b"a b").into_iter().map(|word| String::from_utf8(word).unwrap()).collect();
            assert_eq!(got, want, "{command}");
        }
    }
}
