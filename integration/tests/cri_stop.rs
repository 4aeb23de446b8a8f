//! A daemon that is asked to stop: calls that run come to their end, and what they were about runs on.

use std::process::Stdio;

use gantry_integration::Lab;
use gantry_integration::registry::DockerRegistry;
use serde_json::{Value, json};

use crate::cri_node::{self, Node, wait_for};

#[test]
fn a_command_that_runs_when_the_daemon_is_asked_to_stop_is_answered_first() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let config = format!("{}[gantry]\ndrain = '60s'\n", cri_node::config(&lab));
    let mut node = Node::start_with(&lab, &config);
    let image = node.busybox(&registry);
    let pod = node.run_pod("one", &json!({}));
    // Its own first process is number one: what goes to that one's output is in the log.
    let own = json!({"security_context": {"namespace_options": {"pid": "CONTAINER"}}});
    let sleeping = json!({"image": {"image": image}, "command": ["/bin/sh", "-c", "exec sleep 1000"], "linux": own});
    let main = node.run_container(&pod, "main", &sleeping);
    let command = json!(["/bin/sh", "-c", "echo begun >/proc/1/fd/1; sleep 1; echo over"]);
    let mut exec = node.command("RuntimeService", "ExecSync", &json!({"container_id": main, "cmd": command}));
    let exec = exec.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start grpcurl");
    let log = lab.path("logs/main.log");
    wait_for("the command runs", || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("begun")));
    node.daemon.stop();
    let out = exec.wait_with_output().expect("the call ends");
    let answer: Value = serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|_| panic!("{}\n{}", String::from_utf8_lossy(&out.stderr), node.daemon.log_tail()));
    // Bytes are base64 in JSON: "over" and a line's end.
    assert_eq!(answer["stdout"], "b3Zlcgo=");
    node.daemon.launch();
    let status = node.ask("ContainerStatus", &json!({"container_id": main}));
    assert_eq!(status["status"]["state"], "CONTAINER_RUNNING", "{status}");
    node.remove_pod(&pod);
    node.finish();
}
