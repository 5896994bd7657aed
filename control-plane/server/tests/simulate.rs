//! `headgate simulate` as scripts see it: files, output, exit codes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn headgate(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_headgate")).arg("simulate").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A standard scenario cut to a few seconds, in a file.
fn short_scenario(folder: &Path) -> String {
    let printed = headgate(&["--print-scenario", "steady-5x"]);
    assert_eq!(printed.status.code(), Some(0));
    let document = text(&printed.stdout)
        .replace("seconds: 60", "seconds: 4")
        .replace("drainSeconds: 60", "drainSeconds: 4")
        .replace("measureFromSeconds: 20", "measureFromSeconds: 1");
    let path = folder.join("short.yaml");
    fs::write(&path, document).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_run_writes_the_same_json_every_time_and_a_page_that_needs_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let scenario = short_scenario(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (page, first, second) = (path("run.html"), path("first.json"), path("second.json"));
    for json in [&first, &second] {
        let output = headgate(&["--scenario", &scenario, "--seed", "3", "--json", json, "--html", &page]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("goodput"), "the table is printed besides");
    }
    assert_eq!(fs::read_to_string(&first).unwrap(), fs::read_to_string(&second).unwrap());
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && page.contains("prefers-color-scheme:dark") && page.ends_with("</html>\n"));
    for foreign in ["http://", "https://", "<script", "<link", "src="] {
        assert!(!page.contains(foreign), "{foreign} has no place in a self-contained page");
    }
}

#[test]
fn a_suite_says_how_everyone_did_and_whom_headgate_is_not_ahead_of() {
    let folder = tempfile::tempdir().unwrap();
    let scenario = short_scenario(folder.path());
    let output = headgate(&["--suite", "overload", "--scenarios", &scenario, "--controllers", "dagor", "--seeds", "2", "--json", "-"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("2/2 worlds"), "progress goes to stderr");
    let results: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let controllers = &results["scenarios"][0]["controllers"];
    for name in ["headgate", "oracle", "no_control", "dagor"] {
        let of = &controllers[name];
        for field in ["goodput_vs_oracle", "top_class_slo", "throughput_vs_none"] {
            assert!(of[field].is_number(), "{name}.{field}: {of}");
        }
        for field in ["jain", "settle_s", "overshoot", "recovery_s", "min_kv_use_while_queued"] {
            assert!(of.get(field).is_some(), "{name} lacks {field}");
        }
    }
    let overall = results["sim_requests_per_s_per_core"].as_f64().unwrap();
    assert!(overall > 0.0);
    // Of one scenario the figure over all is its own.
    let by_scenario: Vec<f64> =
        results["sim_requests_per_s_per_core_by_scenario"].as_object().unwrap().values().filter_map(serde_json::Value::as_f64).collect();
    assert_eq!(by_scenario, [overall]);
    assert!(results["scenarios"][0]["headgate_against"]["dagor"]["verdict"].is_string());
}

#[test]
fn wrong_inputs_have_exit_codes_of_their_own_and_name_every_field() {
    let folder = tempfile::tempdir().unwrap();
    let scenario = short_scenario(folder.path());
    let broken = fs::read_to_string(&scenario).unwrap().replace("load: 5", "load: -1").replace("rps: 13.5", "rps: .nan");
    fs::write(&scenario, broken).unwrap();
    let output = headgate(&["--scenario", &scenario]);
    assert_eq!(output.status.code(), Some(2));
    let problems = text(&output.stderr);
    assert!(problems.contains("load: -1 is outside 0.01..=1000"), "{problems}");
    assert!(problems.contains("traffic[0].arrivals.rps: NaN is outside 0..=10000000"), "{problems}");
    assert_eq!(headgate(&["--scenario", "step-100x"]).status.code(), Some(3));
    assert_eq!(headgate(&["--scenario", "steady-2x", "--controller", "magic"]).status.code(), Some(3));
    assert_eq!(headgate(&[]).status.code(), Some(2), "what to do must be said");
}
