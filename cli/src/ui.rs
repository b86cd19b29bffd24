//! The terminal: results on standard output, everything else on standard error, progress only where a person watches.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use git_devops::error::{Context, Error, Reason, Result};
use git_devops::progress::Progress;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::exit;

/// Where a verb says what it has to say.
pub struct Ui {
    is_json: bool,
    is_quiet: bool,
    exit: u8,
    out: std::io::BufWriter<Out>,
    progress: Arc<Progress>,
    ticker: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Ui {
    /// Returns a door that prints JSON or lines.
    pub fn new(is_json: bool, is_quiet: bool) -> Self {
        Self {
            is_json,
            is_quiet,
            exit: exit::OK,
            out: std::io::BufWriter::with_capacity(64 * 1024, Out { stream: std::io::stdout(), is_closed: false }),
            progress: Arc::default(),
            ticker: None,
        }
    }

    /// Says whether results are wanted as JSON.
    pub fn is_json(&self) -> bool {
        self.is_json
    }

    /// Prints a line of the result, unless JSON is wanted.
    pub fn line(&mut self, line: impl Display) -> Result<()> {
        if self.is_json { Ok(()) } else { writeln!(self.out, "{line}").context(|| "cannot write to standard output") }
    }

    /// Prints a line that only a person wants: not in JSON, not when silence was asked for.
    pub fn note(&mut self, line: impl Display) -> Result<()> {
        if self.is_quiet { Ok(()) } else { self.line(line) }
    }

    /// Prints the result as JSON, if that is wanted.
    pub fn json(&mut self, value: impl FnOnce() -> Value) -> Result<()> {
        if self.is_json { writeln!(self.out, "{}", value()).context(|| "cannot write to standard output") } else { Ok(()) }
    }

    /// Returns standard output, for content.
    pub fn raw(&mut self) -> &mut impl Write {
        &mut self.out
    }

    /// Sets how the program ends if nothing worse happens.
    pub fn exit_with(&mut self, code: u8) {
        self.exit = code;
    }

    /// Returns the counters of this run, shown on standard error while a person watches.
    pub fn progress(&mut self) -> Arc<Progress> {
        if self.ticker.is_none() && !self.is_quiet && !self.is_json && std::io::stderr().is_terminal() {
            let stop = Arc::new(AtomicBool::new(false));
            let (progress, stop_too) = (self.progress.clone(), stop.clone());
            let tick = move || tick(&progress, &stop_too);
            self.ticker = std::thread::Builder::new().spawn(tick).ok().map(|ticker| (stop, ticker));
        }
        self.progress.clone()
    }

    /// Prints the warnings of the run; returns whether there were any.
    pub fn warnings(&mut self) -> Vec<Value> {
        self.stop_ticker();
        let warnings = self.progress.take_warnings();
        for warning in &warnings {
            complain(format_args!("warning: '{}': {}", shown_path(&warning.path), shown_message(&warning.message)));
        }
        warnings.iter().map(|warning| json!({"path": json_path(&warning.path), "message": warning.message})).collect()
    }

    /// Ends the run: says what failed, and returns the exit code.
    pub fn finish(mut self, result: Result<()>) -> ExitCode {
        self.stop_ticker();
        let result = result.and_then(|()| self.out.flush().context(|| "cannot write to standard output"));
        match result {
            Ok(()) => ExitCode::from(self.exit),
            // Nobody reads on, as in 'gdo cat HEAD:log | head': no failure that anyone wants to hear of.
            Err(_) if self.out.get_ref().is_closed => ExitCode::from(exit::CLOSED),
            Err(error) => {
                self.warnings();
                let _ = self.out.flush();
                let code = exit::code(error.kind());
                if self.is_json {
                    let id = error.reason().map(Reason::id);
                    let _ = writeln!(self.out, "{}", json!({"error": format!("{error:#}"), "id": id, "exit_code": code}));
                    let _ = self.out.flush();
                }
                complain(format_args!("error: {}", shown(error.told().as_bytes())));
                ExitCode::from(code)
            }
        }
    }

    fn stop_ticker(&mut self) {
        if let Some((stop, thread)) = self.ticker.take() {
            stop.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
    }
}

/// Standard output, which knows whether its reader has gone.
struct Out {
    stream: std::io::Stdout,
    is_closed: bool,
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let done = self.stream.write(bytes);
        self.note(done)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let done = self.stream.flush();
        self.note(done)
    }
}

impl Out {
    fn note<T>(&mut self, done: std::io::Result<T>) -> std::io::Result<T> {
        self.is_closed |= done.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe);
        done
    }
}

/// Prints a line to standard error; whether anyone reads it changes nothing.
pub fn complain(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Draws the counters until told to stop.
fn tick(progress: &Progress, stop: &AtomicBool) {
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("BUG: the template is fixed"));
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
        let now = progress.now();
        let of_files = if now.total_files > 0 { format!("/{}", now.total_files) } else { String::new() };
        let of_bytes = if now.total_bytes > 0 { format!("/{}", HumanBytes(now.total_bytes)) } else { String::new() };
        bar.set_message(format!("{}: {}{of_files} files, {}{of_bytes}", now.stage, now.files, HumanBytes(now.bytes)));
        bar.tick();
    }
    bar.finish_and_clear();
}

/// Returns a name or a message so that no byte of it does anything to a terminal: what is not printable becomes `\xNN`.
pub fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            let is_bidi =
                matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}' | '\u{feff}');
            let mut utf8 = [0; 4];
            match c {
                '\n' => text.push_str("\\n"),
                '\\' => text.push_str("\\\\"),
                c if c.is_control() || is_bidi => {
                    c.encode_utf8(&mut utf8).bytes().for_each(|b| text.push_str(&format!("\\x{b:02x}")));
                }
                c => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|b| text.push_str(&format!("\\x{b:02x}")));
    }
    text
}

/// Returns a message of ours for the terminal: what is escaped in it already stays as it is, and nothing else in it does anything.
pub fn shown_message(message: &str) -> String {
    shown(message.as_bytes()).replace("\\\\", "\\")
}

/// Returns a path of the work tree as [`shown`] does; the top is '.'.
pub fn shown_path(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { shown(path) }
}

/// Returns a path for JSON: a string, or, where it is not UTF-8, an object with the bytes in base 16.
pub fn json_path(path: &[u8]) -> Value {
    match std::str::from_utf8(path) {
        Ok(text) => json!(text),
        Err(_) => json!({"hex": path.iter().map(|b| format!("{b:02x}")).collect::<String>()}),
    }
}

/// Returns a moment, in seconds since 1970, for people.
pub fn time(seconds: u64) -> String {
    let moment = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    moment.map_or_else(|| "the end of time".to_owned(), |moment| moment.to_string())
}

/// Returns a number of things as people say it.
pub fn counted(n: usize, thing: &str) -> String {
    if n == 1 { format!("1 {thing}") } else { format!("{n} {thing}s") }
}

/// Returns a number of bytes as people read it.
pub fn bytes(n: u64) -> String {
    HumanBytes(n).to_string()
}

/// Opens `/dev/null` where standard input, output or error is closed, so that no file of ours ever gets one of their numbers.
pub fn restore_default_streams() {
    while let Ok(file) = std::fs::File::options().read(true).write(true).open("/dev/null") {
        use std::os::fd::{AsRawFd, IntoRawFd};
        if file.as_raw_fd() > 2 {
            break;
        }
        let _ = file.into_raw_fd();
    }
}

/// Asks for as many open files as the machine lets us have.
pub fn raise_open_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Makes a write beyond the limit of a file's size an error of that write: the signal would end the process without a word.
pub fn survive_file_size_limit() {
    let _ = signal_hook::flag::register(rustix::process::Signal::XFSZ.as_raw(), Arc::default());
}

/// Has memory given to us page by page: the allocator asks for 2 MiB at a time, most of which stays empty. That is two thirds of what we would take, and
/// where memory is in pieces, the kernel has to move others' pages for it.
pub fn do_without_huge_pages() {
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Returns an error for a wrong call.
pub fn usage(message: impl Into<String>) -> Error {
    Error::new(git_devops::error::Kind::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_name_reaches_the_terminal() {
        for (name, want) in [
            (&b"plain \xc3\xa9"[..], "plain é"),
            (b"a\nb", "a\\nb"),
            (b"\x1b]0;x\x07", "\\x1b]0;x\\x07"),
            (b"\xff\xfe", "\\xff\\xfe"),
            ("\u{202e}gpj".as_bytes(), "\\xe2\\x80\\xaegpj"),
            (b"back\\slash", "back\\\\slash"),
            ("\u{9b}31m".as_bytes(), "\\xc2\\x9b31m"),
        ] {
            assert_eq!(shown(name), want);
        }
    }
}
