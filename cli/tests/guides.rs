//! The guides of the manual, followed to the letter: each line after a prompt is run, and what the guide shows after it is what comes.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A line to type, and what is shown after it.
struct Step {
    /// The directory that the prompt names; none means wherever the last one without a name led.
    dir: Option<String>,
    command: String,
    shown: Vec<String>,
}

/// Returns the steps of a guide whose prompts are `$`, or `NAME$` with one of `dirs`.
fn steps(guide: &str, dirs: &[&str]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for block in guide.split("```").skip(1).step_by(2) {
        let mut is_begun = false;
        for line in block.lines().skip(1) {
            let prompt = line.split_once("$ ").filter(|(dir, _)| dir.is_empty() || dirs.contains(dir));
            if let Some((dir, command)) = prompt {
                let dir = Some(dir.to_owned()).filter(|dir| !dir.is_empty());
                steps.push(Step { dir, command: command.to_owned(), shown: Vec::new() });
                is_begun = true;
            } else if is_begun {
                steps.last_mut().expect("BUG: one is begun").shown.push(line.to_owned());
            }
        }
    }
    steps
}

/// Returns a line without what differs each time: ids and moments.
fn plain(line: &str) -> String {
    let mut plain = String::new();
    for word in line.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != ':') {
        let bare = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let is_hex = bare.len() >= 12 && bare.bytes().all(|b| b.is_ascii_hexdigit());
        let is_entry = bare.len() == 26 && bare.starts_with("01");
        let is_moment = bare.len() == 20 && bare.ends_with('Z') && bare.as_bytes()[10] == b'T';
        plain += if is_hex || is_entry || is_moment { "ID" } else { bare };
        plain += &word[bare.len()..];
    }
    plain
}

/// Where a guide is followed; the sshd that it starts ends with it.
struct Desk(tempfile::TempDir);

impl Drop for Desk {
    fn drop(&mut self) {
        let script = "test ! -e \"$1/ssh/pid\" || kill $(cat \"$1/ssh/pid\"); gpgconf --homedir \"$1/gnupg\" --kill all";
        let _ = Command::new("sh").args(["-c", script, "sh"]).arg(self.0.path()).stderr(Stdio::null()).status();
    }
}

/// Follows the guide at `path`, which was written in the directory `written`.
fn follow(path: &str, written: &str, dirs: &[&str]) {
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/manual").join(path);
    let guide = std::fs::read_to_string(&manual).unwrap();
    let (begin, end) = (guide.find("$ ").unwrap(), guide.find("\n## Packages").unwrap_or(guide.len()));
    assert!(begin < end);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let desk = Desk(tempfile::tempdir().unwrap());
    let top = desk.0.path().canonicalize().unwrap();
    // What asks a person for a passphrase.
    let typed = |command: &str| command.replace("gpg --quick-gen-key", "gpg -q --batch --passphrase '' --quick-gen-key");
    let steps = steps(&guide[..end].replace("2299", &port), dirs);
    let mut script = "mkdir -m 700 gnupg; export GNUPGHOME=$PWD/gnupg; exec 2>&1; top=$PWD; here=$PWD\n".to_owned();
    for (n, step) in steps.iter().enumerate() {
        let dir = step.dir.as_ref().map_or("\"$here\"".to_owned(), |dir| format!("\"$top/{dir}\""));
        let leave = if step.dir.is_none() { "here=$PWD" } else { ":" };
        script += &format!("printf '@@ {n}\\n'; cd {dir}; {}; {leave}\n", typed(&step.command));
    }
    let bin = PathBuf::from(env!("CARGO_BIN_EXE_gdo")).parent().unwrap().to_owned();
    let mut bash = Command::new("bash");
    bash.arg("-c").arg(script).current_dir(&top).stdin(Stdio::null());
    bash.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())).env("SHLVL", "2");
    for key in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_DEVOPS_STORE"] {
        bash.env_remove(key);
    }
    let said = String::from_utf8(bash.output().unwrap().stdout).unwrap().replace(top.to_str().unwrap(), written);
    let parts: Vec<Vec<&str>> = said.split("@@ ").skip(1).map(|part| part.lines().skip(1).collect()).collect();
    for (step, came) in steps.iter().zip(&parts) {
        let asks_gpg = step.command.starts_with("gpg ");
        let [came, shown] = [came.iter().map(|line| plain(line)).collect(), step.shown.iter().map(|line| plain(line)).collect()]
            .map(|lines: Vec<String>| lines.join("\n"));
        assert!(asks_gpg || came == shown, "{path}: '{}' says\n{came}\nand the guide\n{shown}\nof all\n{said}", step.command);
    }
    assert_eq!((steps.len(), steps.is_empty()), (parts.len(), false));
}

#[test]
fn machines_that_stay_alike_are_built() {
    follow("alike.md", "/tmp/alike", &["first", "second"]);
}

#[test]
fn a_machine_that_nobody_knows_is_taken_over() {
    follow("take-over.md", "/tmp/demo", &[]);
}
