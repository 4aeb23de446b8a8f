//! Configuration of daemons that serve Kubernetes' interface side by side.

use serde_json::json;

use crate::Lab;
use crate::lab::peer_binary;

/// With a bridge of its own by the real plug-ins, where a subnet is given; `image` is that of pause containers. Containerd's
/// keys serve both daemons. A machine may withhold the right to lower oom scores.
pub fn config(lab: &Lab, name: &str, subnet: &str, image: &str) -> String {
    let nets = lab.path(&format!("net-{name}"));
    std::fs::create_dir_all(&nets).expect("make a directory");
    if !subnet.is_empty() {
        let ipam = json!({"type": "host-local", "dataDir": lab.path(&format!("ipam-{name}")), "subnet": subnet});
        let conf = json!({"cniVersion": "1.0.0", "name": name, "plugins": [
            {"type": "bridge", "bridge": format!("cni-{name}"), "isGateway": true, "ipam": ipam}]});
        std::fs::write(nets.join("10.conflist"), conf.to_string()).expect("write the configuration");
    }
    let plugins = peer_binary("cni/bridge");
    format!(
        "version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = {image:?}\n\
         [plugins.'io.containerd.nri.v1.nri']\ndisable = true\n\
         [plugins.'io.containerd.cri.v1.runtime']\nnetns_mounts_under_state_dir = true\n\
         restrict_oom_score_adj = true\n\
         [plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = {nets:?}\nbin_dirs = [{:?}]\n",
        plugins.parent().expect("plug-ins lie in a directory")
    )
}
