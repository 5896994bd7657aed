//! The rules of the house that the compiler does not enforce: edges between crates, sizes, documentation that tells the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// Which of our crates each crate may depend on. Crates under `tests/` may depend on anything; nothing else depends on them, but
/// `headgate simulate` on the simulator.
const EDGES: &[(&str, &[&str])] = &[
    ("headgate-protos", &[]),
    ("headgate-core", &["headgate-protos"]),
    ("headgate-filter", &["headgate-core", "headgate-protos"]),
    ("headgate-xds", &["headgate-protos"]),
    ("headgate", &["headgate-core", "headgate-protos", "headgate-sim", "headgate-xds"]),
    ("inference-sim", &[]),
    ("xtask", &[]),
];

/// Third-party crates that would break a boundary: a clock, a runtime or a socket where there must be none.
const BANNED: &[(&str, &[&str])] = &[
    ("headgate-core", &["tokio", "tonic", "serde_json", "rand", "getrandom", "tracing", "proxy-wasm"]),
    ("headgate-filter", &["tokio", "tonic", "tracing", "rand", "proxy-wasm"]),
    ("headgate-xds", &["tokio", "tonic", "rand"]),
];

/// Longest production function and file, in lines.
const MAX_FN_LINES: usize = 70;
const MAX_FILE_LINES: usize = 400;

/// Longest of the two documents that everybody is to read whole, in lines.
const MAX_DOCUMENT_LINES: usize = 150;

/// Functions that are one table or one straight sequence, where a split would only hide it: path and name.
const LONG_FUNCTIONS: &[(&str, &str)] = &[];

/// Budget of the thin adapter: lines of code of `filter/wasm/src`, without the files that stand where others have an SDK.
const MAX_ADAPTER_LINES: usize = 500;
/// Declarations of the ABI, total functions over it, and the dispatch of callbacks to contexts.
const INSTEAD_OF_AN_SDK: &[&str] = &["abi.rs", "host.rs", "vm.rs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace root exists")
}

fn metadata() -> Metadata {
    MetadataCommand::new().manifest_path(root().join("Cargo.toml")).exec().expect("cargo metadata runs")
}

fn is_test_crate(package: &Package) -> bool {
    package.manifest_path.strip_prefix(root()).is_ok_and(|path| path.starts_with("tests"))
}

#[test]
fn crates_depend_only_along_the_allowed_edges() {
    let metadata = metadata();
    let members = metadata.workspace_packages();
    let ours: BTreeSet<&str> = members.iter().map(|package| package.name.as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in members.iter().filter(|package| !is_test_crate(package)) {
        let Some(allowed) = allowed.get(package.name.as_str()) else {
            wrong.push(format!("{} is not in the table of edges", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| ours.contains(dependency.name.as_str())) {
            // A crate may name itself to switch its own features on in tests.
            if dependency.name != package.name.as_str() && !allowed.contains(&dependency.name.as_str()) {
                wrong.push(format!("{} -> {}", package.name, dependency.name));
            }
        }
    }
    assert!(wrong.is_empty(), "edges that ARCHITECTURE.md does not allow: {wrong:#?}");
}

#[test]
fn no_clock_runtime_or_socket_reaches_the_pure_crates() {
    let metadata = metadata();
    for (name, banned) in BANNED {
        let package = metadata.workspace_packages().into_iter().find(|package| package.name.as_str() == *name).expect("a member");
        let wrong: Vec<_> = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind == DependencyKind::Normal && banned.contains(&dependency.name.as_str()))
            .map(|dependency| &dependency.name)
            .collect();
        assert!(wrong.is_empty(), "{name} must not depend on {wrong:?}");
    }
}

#[test]
fn core_is_no_std() {
    let lib = fs::read_to_string(root().join("filter/core/src/lib.rs")).expect("core exists");
    assert!(lib.contains("#![no_std]"), "filter/core/src/lib.rs must say #![no_std]: it keeps clocks, files and random hashing out");
    let sources = sources(&root().join("filter/core/src"));
    let test_modules: BTreeSet<String> = sources.iter().flat_map(|(_, text)| test_modules(text)).collect();
    for (path, text) in &sources {
        let module = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let uses_std = production(text).iter().any(|line| is_code(line) && line.contains("use std::"));
        assert!(test_modules.contains(&module) || !uses_std, "{} uses std outside tests", path.display());
    }
}

#[test]
fn every_dependency_has_one_version() {
    let metadata = metadata();
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut literal = Vec::new();
    for package in metadata.workspace_packages() {
        let manifest = fs::read_to_string(&package.manifest_path).expect("the manifest exists");
        for dependency in &package.dependencies {
            versions.entry(dependency.name.clone()).or_default().insert(dependency.req.to_string());
            let by_workspace = [format!("{}.workspace", dependency.name), format!("{} = {{ workspace", dependency.name)];
            let renamed = dependency.rename.as_ref().is_some_and(|name| manifest.contains(&format!("{name}.workspace")));
            if !renamed && !by_workspace.iter().any(|form| manifest.contains(form)) {
                literal.push(format!("{} in {}", dependency.name, package.name));
            }
        }
    }
    versions.retain(|_, versions| versions.len() > 1);
    assert!(versions.is_empty(), "dependencies with more than one version: {versions:#?}");
    assert!(literal.is_empty(), "dependencies that do not take their version from the workspace: {literal:#?}");
}

#[test]
fn no_dependency_is_dead_weight() {
    let metadata = metadata();
    let mut asked_for = BTreeSet::new();
    let mut dead = Vec::new();
    for package in metadata.workspace_packages() {
        let folder = package.manifest_path.parent().expect("a manifest has a folder").as_std_path();
        let named: BTreeSet<String> =
            walk(folder, "rs").iter().flat_map(|path| with_included(path)).flat_map(|text| words(&text)).collect();
        for dependency in &package.dependencies {
            let name = dependency.rename.as_ref().unwrap_or(&dependency.name);
            if !named.contains(&name.replace('-', "_")) {
                dead.push(format!("{} asks for {name} and does not use it", package.name));
            }
            asked_for.insert(name.clone());
        }
    }
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the manifest exists");
    let offered = manifest.split("[workspace.dependencies]").nth(1).and_then(|rest| rest.split("\n[").next()).expect("the section exists");
    let offered = offered.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name.to_owned());
    dead.extend(offered.filter(|name| !asked_for.contains(name)).map(|name| format!("no package asks for {name}")));
    assert!(dead.is_empty(), "dependencies that nobody uses: {dead:#?}");
}

/// A source and the sources that it includes by path.
fn with_included(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("readable");
    let folder = path.parent().expect("a file has a folder");
    let included = text.split("#[path = \"").skip(1).filter_map(|rest| rest.split('"').next());
    let included = included.map(|included| fs::read_to_string(folder.join(included)).expect("an included source is readable"));
    included.chain([text.clone()]).collect()
}

fn words(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned).collect()
}

#[test]
fn panics_are_denied_where_a_request_could_cause_one() {
    for crate_root in ["filter/core", "filter/wasm", "protos"] {
        let manifest = fs::read_to_string(root().join(crate_root).join("Cargo.toml")).expect("the manifest exists");
        let lib = fs::read_to_string(root().join(crate_root).join("src/lib.rs")).expect("lib.rs exists");
        for lint in ["unwrap_used", "expect_used", "panic", "indexing_slicing"] {
            let denied = manifest.contains(&format!("{lint} = \"deny\"")) || lib.contains(&format!("clippy::{lint}"));
            assert!(denied, "{crate_root} must deny clippy::{lint}: a panic in the filter is an outage");
        }
    }
}

#[test]
fn functions_and_files_stay_within_their_budgets() {
    let mut over = Vec::new();
    for (path, text) in production_sources() {
        let lines = production(&text);
        let name = path.strip_prefix(root()).expect("below the root").display().to_string();
        if lines.len() > MAX_FILE_LINES {
            over.push(format!("{name}: {} lines, allowed {MAX_FILE_LINES}", lines.len()));
        }
        for (function, at, length) in functions(&lines) {
            let listed = LONG_FUNCTIONS.contains(&(name.as_str(), function.as_str()));
            if length > MAX_FN_LINES && !listed {
                over.push(format!("{name}:{at} {function}: {length} lines, allowed {MAX_FN_LINES}"));
            }
        }
    }
    assert!(over.is_empty(), "over budget: {over:#?}");
}

#[test]
fn the_adapter_stays_thin() {
    let total: usize = sources(&root().join("filter/wasm/src"))
        .iter()
        .filter(|(path, _)| !INSTEAD_OF_AN_SDK.iter().any(|file| path.ends_with(file)))
        .map(|(_, text)| production(text).iter().filter(|line| is_code(line)).count())
        .sum();
    assert!(total <= MAX_ADAPTER_LINES, "filter/wasm/src has {total} lines of code, allowed {MAX_ADAPTER_LINES}: logic belongs in core");
}

#[test]
fn every_module_says_what_it_is() {
    let silent: Vec<_> =
        production_sources().into_iter().filter(|(_, text)| !text.trim_start().starts_with("//!")).map(|(path, _)| path).collect();
    assert!(silent.is_empty(), "files without a module doc: {silent:#?}");
}

#[test]
fn nothing_is_left_for_later() {
    let words = ["TO", "FIX"].map(|head| format!("{head}{}", if head == "TO" { "DO" } else { "ME" }));
    let found: Vec<_> = production_sources()
        .into_iter()
        .filter(|(_, text)| words.iter().any(|word| text.contains(word.as_str())))
        .map(|(path, _)| path)
        .collect();
    assert!(found.is_empty(), "work left for later belongs in an issue: {found:#?}");
}

#[test]
fn what_everybody_reads_is_short() {
    for document in ["README.md", "ARCHITECTURE.md"] {
        let lines = fs::read_to_string(root().join(document)).expect("readable").lines().count();
        assert!(
            lines <= MAX_DOCUMENT_LINES,
            "{document} has {lines} lines, {MAX_DOCUMENT_LINES} are allowed: move what few need into its folder"
        );
    }
}

#[test]
fn every_path_named_in_a_document_exists() {
    let root = root();
    let top: BTreeSet<String> = fs::read_dir(&root)
        .expect("the root is readable")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into())
        .collect();
    let mut dead = Vec::new();
    for document in walk(&root, "md") {
        let text = fs::read_to_string(&document).expect("readable");
        let folder = document.parent().expect("a file has a folder");
        for named in paths_in(&text, &top) {
            if !root.join(&named).exists() && !folder.join(&named).exists() {
                dead.push(format!("{}: {named}", document.strip_prefix(&root).expect("below the root").display()));
            }
        }
    }
    assert!(dead.is_empty(), "documents name paths that do not exist: {dead:#?}");
}

/// Paths that a document names: targets of relative links, and code spans that begin with an entry of the root.
fn paths_in(text: &str, top: &BTreeSet<String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("](") {
        let target: String = text[at + 2..].chars().take_while(|c| *c != ')').collect();
        let target = target.split('#').next().unwrap_or_default().to_owned();
        if !target.is_empty() && !target.contains("://") {
            found.insert(target);
        }
    }
    for span in text.split('`').skip(1).step_by(2) {
        let looks_like_path = span.contains('/') && !span.contains(|c: char| c.is_whitespace() || "*<>{}$…=:|,".contains(c));
        let head = span.split('/').next().unwrap_or_default();
        if looks_like_path && head != "target" && top.contains(head) {
            found.insert(span.trim_end_matches('/').to_owned());
        }
    }
    found
}

// === reading sources ===

/// All Rust files that ship or run in production: no tests, no generated code.
fn production_sources() -> Vec<(PathBuf, String)> {
    let root = root();
    ["filter", "control-plane", "protos", "examples", "xtask", "tests/support", "tests/bench"]
        .iter()
        .flat_map(|folder| sources(&root.join(folder)))
        .collect()
}

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    walk(folder, "rs")
        .into_iter()
        .filter(|path| {
            let below = path.strip_prefix(root()).expect("below the root");
            let in_tests_folder = below.components().skip(1).any(|part| part.as_os_str() == "tests" || part.as_os_str() == "gen");
            !in_tests_folder && !path.ends_with("tests.rs")
        })
        .map(|path| {
            let text = fs::read_to_string(&path).expect("readable");
            (path, text)
        })
        .collect()
}

fn walk(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder is readable") {
        let path = entry.expect("readable").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && name != "node_modules" && !(name.starts_with('.') && name != ".ci") {
                found.extend(walk(&path, extension));
            }
        } else if path.extension().is_some_and(|given| given == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The lines before the first test module.
fn production(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    let end = lines
        .windows(2)
        .position(|pair| pair[0].trim_start().starts_with("#[cfg(") && pair[0].contains("test") && pair[1].contains("mod "))
        .unwrap_or(lines.len());
    lines[..end].to_vec()
}

/// Names of the modules that are there for tests only.
fn test_modules(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let declared = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]").filter_map(|pair| pair[1].strip_suffix(';'));
    declared.filter_map(|line| line.split_once("mod ")).map(|(_, name)| name.to_owned()).collect()
}

fn is_code(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with("//")
}

/// Name, first line and length of every function, found by matching braces.
fn functions(lines: &[&str]) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let (mut depth, mut opened) = (0_i64, false);
        for (length, body) in lines[at..].iter().enumerate() {
            let text = without_literals(body);
            depth += text.matches('{').count() as i64 - text.matches('}').count() as i64;
            opened |= text.contains('{');
            if opened && depth <= 0 {
                found.push((name, at + 1, length + 1));
                break;
            }
            if !opened && text.trim_end().ends_with(';') {
                break;
            }
        }
    }
    found
}

fn function_name(line: &str) -> Option<String> {
    let mut words = line.split_whitespace().peekable();
    while let Some(word) = words.next() {
        match word {
            "fn" => return words.next().map(|name| name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()),
            "const" | "async" | "unsafe" | "default" | "extern" => {}
            word if word.starts_with("pub") || word.starts_with('"') => {}
            _ => return None,
        }
    }
    None
}

fn without_literals(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars().peekable();
    let mut in_string = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => {
                chars.next();
            }
            '"' => in_string = !in_string,
            '\'' if !in_string && chars.clone().nth(1) == Some('\'') => {
                chars.next();
                chars.next();
            }
            '/' if !in_string && chars.peek() == Some(&'/') => break,
            c if !in_string => out.push(c),
            _ => {}
        }
    }
    out
}
