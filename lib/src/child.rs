//! Programs that run beside us: what they say, and how a word is written for a shell that is to start one. Nothing here starts any.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::{Child, ChildStderr, ChildStdin, Output};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::threads;

/// Gives a program all of `input`, if it was started with a pipe for that, takes what it writes to its pipes, and waits for its end.
///
/// It may write before it has read everything. What it does not read, because it gave up, is told by how it ends.
pub fn feed(mut child: Child, input: &[u8]) -> std::io::Result<Output> {
    let stdin = child.stdin.take();
    std::thread::scope(|scope| {
        let start = |mut pipe: ChildStdin| threads::start(scope, move || pipe.write_all(input));
        // Without a thread it reads nothing, and ends.
        let started = stdin.map(start).transpose();
        let output = child.wait_with_output();
        started.and(output)
    })
}

/// What a program says on standard error, collected while it runs: how much, and the last of it.
#[derive(Clone, Debug, Default)]
pub struct Words(Arc<(Mutex<Heard>, Condvar)>);

#[derive(Debug, Default)]
struct Heard {
    n_bytes: u64,
    last: Vec<u8>,
    is_on: bool,
}

/// As much of it is kept.
const MAX_WORDS: usize = 64 << 10;
/// Longest line that is told on, in characters.
const MAX_LINE: usize = 300;

impl Words {
    /// Collects what comes from `stream` until it ends.
    pub fn of(stream: Option<ChildStderr>) -> Self {
        let words = Self::default();
        words.heard().is_on = true;
        let kept = words.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            if let Some(mut stream) = stream {
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    kept.heard().add(&buffer[..n]);
                }
            }
            kept.heard().is_on = false;
            kept.0.1.notify_all();
        });
        words
    }

    /// Returns how many bytes were said up to now.
    pub fn n_bytes(&self) -> u64 {
        self.heard().n_bytes
    }

    /// Returns the last that was said; of a program that was started and is ending, waits up to `patience` for its end.
    pub fn to_text(&self, patience: Duration) -> String {
        let (heard, _) =
            self.0.1.wait_timeout_while(self.heard(), patience, |heard| heard.is_on).unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&heard.last).replace('\r', "\n")
    }

    /// Returns the last line of [`Self::to_text`] that is not empty, short and without anything that a terminal obeys.
    pub fn last_line(&self, patience: Duration) -> Option<String> {
        let text = self.to_text(patience);
        text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(told)
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    fn add(&mut self, bytes: &[u8]) {
        self.n_bytes += bytes.len() as u64;
        self.last.extend_from_slice(bytes);
        let surplus = self.last.len().saturating_sub(MAX_WORDS);
        self.last.drain(..surplus);
    }
}

/// Returns a line of another program's as it may stand in a message: short, and without anything that a terminal obeys.
pub fn told(line: &str) -> String {
    line.chars().take(MAX_LINE).collect::<String>().escape_debug().to_string()
}

/// Returns `word` as one word for a shell.
pub fn shell_quoted(word: impl AsRef<OsStr>) -> OsString {
    let mut quoted = b"'".to_vec();
    for &b in word.as_ref().as_bytes() {
        match b {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            b => quoted.push(b),
        }
    }
    quoted.push(b'\'');
    OsString::from_vec(quoted)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn words_of(script: &str) -> Words {
        let mut child = Command::new("sh").args(["-c", script]).stderr(Stdio::piped()).spawn().unwrap();
        let words = Words::of(child.stderr.take());
        child.wait().unwrap();
        words
    }

    #[test]
    fn the_last_line_is_short_and_harmless_and_little_is_kept() {
        let cases = [
            ("echo one >&2; echo two >&2; echo >&2", Some("two")),
            ("printf 'a\\033[31mb\\007' >&2", Some("a\\u{1b}[31mb\\u{7}")),
            ("printf 'half\\rdone' >&2", Some("done")),
            ("true", None),
        ];
        for (script, last) in cases {
            assert_eq!(words_of(script).last_line(PATIENCE).as_deref(), last, "{script}");
        }
        let many = words_of("head -c 1000000 /dev/zero | tr '\\0' x >&2");
        assert_eq!((many.to_text(PATIENCE).len(), many.n_bytes()), (MAX_WORDS, 1_000_000));
        assert_eq!(many.last_line(PATIENCE).unwrap().len(), MAX_LINE);
    }

    #[test]
    fn nobody_waits_long_for_the_words_of_a_program_that_runs_on() {
        let mut child = Command::new("sh").args(["-c", "echo x >&2; exec sleep 100"]).stderr(Stdio::piped()).spawn().unwrap();
        let words = Words::of(child.stderr.take());
        while words.n_bytes() == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(words.last_line(Duration::from_millis(50)).as_deref(), Some("x"));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_shell_takes_a_quoted_word_for_what_it_is() {
        for word in ["plain", "", "a b", "it's", "$(x) `y` \"z\" \\ * \n;", "''"] {
            let mut script = OsString::from("printf %s ");
            script.push(shell_quoted(word));
            let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
            assert_eq!(output.stdout, word.as_bytes(), "{word:?}");
        }
    }
}
