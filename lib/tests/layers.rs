//! The order of the `mod` lines in `lib.rs` is the order of the layers: a module uses only those listed above it.
#![allow(clippy::disallowed_methods)]

use std::fs;
use std::path::Path;

/// Returns the source text below `path`, without comments.
fn source(path: &Path) -> String {
    if path.is_dir() {
        return fs::read_dir(path).unwrap().map(|entry| source(&entry.unwrap().path())).collect();
    }
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect()
}

/// Returns the modules that `text` names as `crate::a` or in a list `crate::{a::x, b}`.
fn modules_used(text: &str) -> Vec<String> {
    let mut used = Vec::new();
    for rest in text.split("crate::").skip(1) {
        let mut depth = 0;
        let mut name = String::new();
        let mut is_first_segment = true;
        for c in rest.chars() {
            match c {
                'a'..='z' | '_' | '0'..='9' if is_first_segment => name.push(c),
                '{' if name.is_empty() => depth += 1,
                '{' => (depth, is_first_segment) = (depth + 1, false),
                '}' | ',' => {
                    used.push(std::mem::take(&mut name));
                    depth -= i32::from(c == '}');
                    is_first_segment = depth == 1;
                }
                c if c.is_whitespace() && depth > 0 => (),
                _ => is_first_segment = false,
            }
            if depth == 0 && !is_first_segment || depth < 0 {
                break;
            }
        }
        used.push(name);
    }
    used.retain(|name| !name.is_empty());
    used
}

/// Returns a line for each use of a module listed below its user.
fn violations(layers: &[String], text_of: impl Fn(&str) -> String) -> Vec<String> {
    let mut broken = Vec::new();
    for (rank, module) in layers.iter().enumerate() {
        for used in modules_used(&text_of(module)) {
            if layers[rank + 1..].contains(&used) {
                broken.push(format!("{module} uses {used}, which is listed below it"));
            }
        }
    }
    broken
}

#[test]
fn a_module_uses_only_the_modules_above_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = source(&src.join("lib.rs"));
    let layers: Vec<String> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).map(str::to_owned).collect();
    assert!(layers.len() > 4, "cannot find the modules of lib.rs: {layers:?}");
    let broken = violations(&layers, |module| source(&src.join(module)) + &source(&src.join(format!("{module}.rs"))));
    assert_eq!(broken, Vec::<String>::new());
}

#[test]
fn a_use_against_the_order_is_found() {
    let layers = ["error", "store", "repo"].map(str::to_owned);
    let text = |module: &str| match module {
        "error" => "use crate::store::Store;".to_owned(),
        "store" => "use crate::{error::{Kind, Result},\n repo::Repo};".to_owned(),
        _ => "fn f() { crate::error::x() }".to_owned(),
    };
    assert_eq!(
        violations(&layers, text),
        ["error uses store, which is listed below it", "store uses repo, which is listed below it"]
    );
}
