//! The command `headgate` as scripts see it: output and exit codes.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const POLICY: &str = "\
apiVersion: headgate.dev/v1
kind: AdmissionPolicy
metadata: {name: demo}
spec:
  pool: demo
  classes:
    - {name: high, whenTripped: reserved_lane}
    - {name: low, whenTripped: refuse}
";

fn headgate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headgate"));
    // What the developer's own shell has set must not reach a test.
    for name in ["HEADGATE_SERVER", "HEADGATE_STATUS_URL", "HEADGATE_CONFIG", "HEADGATE_NVML_LIB", "HEADGATE_DEVICE_TAPE"] {
        command.env_remove(name);
    }
    command
}

fn run(args: &[&str]) -> Output {
    headgate().args(args).output().unwrap()
}

/// Runs with `input` on stdin.
fn run_with(args: &[&str], input: &str) -> Output {
    let mut child = headgate().args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A control plane in a process of its own, killed when dropped.
struct Server {
    child: Child,
    grpc: String,
    http: String,
}

impl Server {
    fn start(data_dir: &Path) -> Self {
        let mut child = headgate()
            .args(["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--no-nvml", "--log-format", "json", "--data-dir"])
            .arg(data_dir)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let up = log.find(|line| line.as_ref().is_ok_and(|line| line.contains("the control plane is up"))).unwrap().unwrap();
        let up: serde_json::Value = serde_json::from_str(&up).unwrap();
        let address = |name: &str| format!("http://{}", up["fields"][name].as_str().unwrap());
        // A full pipe would block the server's log.
        std::thread::spawn(move || log.for_each(drop));
        Self { child, grpc: address("grpc"), http: address("http") }
    }

    fn policy(&self, args: &[&str]) -> Output {
        run(&[&["policy", "--server", &self.grpc], args].concat())
    }

    fn apply(&self, document: &str, args: &[&str]) -> Output {
        run_with(&[&["policy", "--server", &self.grpc, "apply", "-f", "-"], args].concat(), document)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn wrong_usage_is_2_and_names_the_flag() {
    let output = run(&["serve", "--grcp", "127.0.0.1:1"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("--grcp"));
}

#[test]
fn a_wrong_configuration_is_2_with_every_error_on_a_line() {
    let output = run(&["serve", "--grpc", "nowhere", "--limits-ttl-ms", "1"]);
    assert_eq!(code(&output), 2);
    let text = stderr(&output);
    assert!(text.contains("--grpc: `nowhere` is not an address"), "{text}");
    assert!(text.contains("--limits-ttl-ms: 1 is outside 200..=600000"), "{text}");
}

#[test]
fn the_environment_counts_and_a_flag_wins_over_it() {
    let output = headgate().args(["serve", "--grpc", "nowhere"]).env("HEADGATE_GRPC", "elsewhere").env("HEADGATE_HTTP", "there").output();
    let text = stderr(&output.unwrap());
    assert!(text.contains("--grpc: `nowhere`") && text.contains("--http: `there`"), "{text}");
}

#[test]
fn validation_needs_no_server_and_reports_every_error() {
    assert_eq!(code(&run_with(&["policy", "validate", "-f", "-"], POLICY)), 0);
    let broken = POLICY.replace("name: low", "name: L O W").replace("pool: demo", "pool: De mo");
    let output = run_with(&["policy", "validate", "-f", "-"], &broken);
    assert_eq!(code(&output), 1);
    let text = stderr(&output);
    assert!(text.lines().any(|line| line.contains("pool:")) && text.lines().any(|line| line.contains("classes[1].name:")), "{text}");
}

#[test]
fn errors_are_json_when_json_is_wanted() {
    let output = run_with(&["policy", "validate", "--json", "-f", "-"], &POLICY.replace("pool: demo", "pool: De mo"));
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["exit_code"], 1);
    assert!(error["problems"][0].as_str().unwrap().starts_with("pool:"), "{error}");
}

#[test]
fn a_missing_file_is_1_and_is_named() {
    let output = run(&["policy", "validate", "-f", "/nowhere/policy.yaml"]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("/nowhere/policy.yaml"));
}

#[test]
fn without_a_gpu_there_is_nothing_to_record_and_no_file_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let tape = directory.path().join("tape.jsonl");
    let output = run(&["gpu", "--nvml-lib", "/nowhere/libnvidia-ml.so", "--record", tape.to_str().unwrap()]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).starts_with("error: nothing to record: no device: /nowhere/libnvidia-ml.so"), "{}", stderr(&output));
    assert!(!tape.exists());
    assert_eq!(code(&run(&["gpu", "--seconds", "5"])), 2, "a length without a recording is wrong usage");
}

#[test]
fn a_tape_that_cannot_be_played_is_named_with_its_flag() {
    let directory = tempfile::tempdir().unwrap();
    let serve = ["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--device-tape", "/nowhere/tape.jsonl", "--data-dir"];
    let output = run(&[&serve[..], &[directory.path().to_str().unwrap()]].concat());
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("error: --device-tape: cannot read /nowhere/tape.jsonl: "), "{}", stderr(&output));
}

#[test]
fn no_gpu_is_an_answer_and_not_an_error() {
    let output = run(&["gpu", "--json", "--nvml-lib", "/nowhere/libnvidia-ml.so"]);
    assert_eq!(code(&output), 0);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["gpus"], serde_json::json!([]));
    assert!(report["gpu_source"].as_str().unwrap().starts_with("no device: /nowhere/libnvidia-ml.so"), "{report}");
}

#[test]
fn a_server_that_is_not_there_is_4_and_the_address_is_named() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for args in [["policy", "list", "--server"], ["status", "--json", "--url"]] {
        let output = run(&[&args[..], &[&closed.to_string()]].concat());
        assert_eq!(code(&output), 4, "{}", stderr(&output));
        assert!(stderr(&output).contains(&closed.to_string()));
    }
}

#[test]
fn a_busy_port_is_1_and_the_flag_is_named() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let output =
        run(&["serve", "--http", &address, "--grpc", "127.0.0.1:0", "--no-nvml", "--data-dir", directory.path().to_str().unwrap()]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains(&format!("--http: cannot listen on {address}")), "{}", stderr(&output));
}

#[test]
fn the_life_of_a_policy_has_its_exit_codes() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path());

    assert_eq!(code(&server.policy(&["get", "demo"])), 3, "not found");
    assert_eq!(code(&server.apply(POLICY, &["--expected-version", "none"])), 0);
    assert_eq!(code(&server.apply(POLICY, &["--expected-version", "none"])), 5, "it exists now");
    assert_eq!(code(&server.apply(&POLICY.replace("refuse", "refues"), &[])), 1, "invalid");

    let shown = server.policy(&["get", "demo"]);
    assert_eq!(code(&shown), 0);
    let again = server.apply(&stdout(&shown), &["--json"]);
    let again: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(again["changed"], false, "what `get` prints can be applied again");

    let list: serde_json::Value = serde_json::from_slice(&server.policy(&["list", "--json"]).stdout).unwrap();
    assert_eq!(list[0]["name"], "demo");
    let status: serde_json::Value = serde_json::from_slice(&run(&["status", "--json", "--url", &server.http]).stdout).unwrap();
    assert_eq!(status["pools"][0]["classes"][1]["class"], "low");

    assert_eq!(code(&server.policy(&["delete", "demo"])), 0);
    assert_eq!(code(&server.policy(&["delete", "demo"])), 3);
}

#[test]
fn what_became_of_a_policy_is_told_and_undone() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path());
    assert_eq!(code(&server.policy(&["history", "demo"])), 3, "nothing is known of it");
    assert_eq!(code(&server.policy(&["rollback", "demo"])), 3);
    assert_eq!(code(&server.apply(POLICY, &[])), 0);
    assert_eq!(code(&server.policy(&["rollback", "demo"])), 1, "there is nothing to go back to");
    let strict = POLICY.replace("whenTripped: reserved_lane", "whenTripped: gradient_throttle");
    assert_eq!(code(&server.apply(&strict, &[])), 0);
    let change = "classes[high].whenTripped: \"reserved_lane\" -> \"gradient_throttle\"\n";
    assert_eq!(stdout(&server.policy(&["diff", "demo"])), format!("policy demo: 1 -> 2\n{change}"));
    assert_eq!(stdout(&server.policy(&["diff", "demo", "--from", "2", "--to", "2"])), "policy demo: 2 and 2 say the same\n");
    let with_file = run_with(&["policy", "--server", &server.grpc, "diff", "demo", "--from", "1", "-f", "-"], &strict);
    assert_eq!(stdout(&with_file), format!("policy demo: 1 -> -\n{change}"));
    assert_eq!(code(&server.policy(&["diff", "demo", "--from", "9"])), 3, "it is not kept");

    assert_eq!(code(&server.policy(&["rollback", "demo", "--expected-version", "0000000000000000"])), 5);
    let back = server.policy(&["rollback", "demo"]);
    assert!(stdout(&back).starts_with("policy demo is as in revision 1 again, version "), "{}", stdout(&back));
    assert_eq!(code(&server.policy(&["delete", "demo"])), 0);
    assert_eq!(code(&server.policy(&["rollback", "demo", "--to", "4"])), 1, "4 is its deletion");
    let back: serde_json::Value = serde_json::from_slice(&server.policy(&["rollback", "demo", "--to", "2", "--json"]).stdout).unwrap();
    assert_eq!((&back["restored"], &back["changed"]), (&2.into(), &true.into()));

    let history: serde_json::Value = serde_json::from_slice(&server.policy(&["history", "demo", "--json"]).stdout).unwrap();
    let what = |field: &str| history.as_array().unwrap().iter().map(|revision| revision[field].clone()).collect::<Vec<_>>();
    assert_eq!(what("what"), ["restored", "deleted", "restored", "changed", "created"]);
    assert_eq!(what("same_as"), [2.into(), serde_json::Value::Null, 1.into(), serde_json::Value::Null, serde_json::Value::Null]);
    assert!(what("author").iter().all(|author| author == "anonymous"), "on loopback nobody has to say who they are");
    let text = stdout(&server.policy(&["history", "demo"]));
    assert!(text.lines().nth(4).unwrap().ends_with("changed classes[high].whenTripped"), "{text}");
    let proxies = server.policy(&["get", "demo", "--proxies"]);
    assert_eq!(stdout(&proxies), "no proxy is connected\n");
}

#[test]
fn the_commands_of_the_page_about_changes_run_as_they_stand() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("control-plane/server/CHANGES.md")).unwrap();
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let commands: Vec<&str> = blocks.flat_map(str::lines).collect();
    assert!(commands.len() > 10, "{commands:?}");
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path());
    let folder = Path::new(env!("CARGO_BIN_EXE_headgate")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let run = |command: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(&root).env("PATH", &path);
        shell.env("HEADGATE_SERVER", &server.grpc).env("HEADGATE_STATUS_URL", &server.http).output().unwrap()
    };
    let began = std::time::Instant::now();
    let mut shown = String::new();
    for command in commands {
        let mut output = run(command);
        // A control plane that has just begun has recorded nothing to play yet, and looks at a new candidate a moment later.
        let is_early = |output: &Output| {
            let is_played = code(output) == 0 || !command.contains("--dry-run");
            let is_seen = stdout(output).contains("# candidate demo-next") || !command.starts_with("headgate policy get demo-next  ");
            !(is_played && is_seen)
        };
        while is_early(&output) && began.elapsed().as_secs() < 20 {
            std::thread::sleep(std::time::Duration::from_millis(100));
            output = run(command);
        }
        assert_eq!(code(&output), 0, "{command}: {}", stderr(&output));
        shown.push_str(&stdout(&output));
    }
    for expected in [
        "levels.gpuMemory.tripPercent: 75.0 -> 85.0",
        "dry run of policy demo-next",
        "# candidate demo-next of policy demo: 5 % of the requests, 25 % after 600 s",
        "policy demo says now what demo-next said",
        "policy demo is as in revision 1 again",
    ] {
        assert!(shown.contains(expected), "{expected} in {shown}");
    }
}

#[test]
fn policies_survive_a_kill_and_a_term_ends_with_0() {
    let directory = tempfile::tempdir().unwrap();
    let first = Server::start(directory.path());
    assert_eq!(code(&first.apply(POLICY, &[])), 0);
    drop(first);

    let mut second = Server::start(directory.path());
    assert_eq!(code(&second.policy(&["get", "demo"])), 0);
    kill(Pid::from_raw(i32::try_from(second.child.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(second.child.wait().unwrap().code(), Some(0));
}
