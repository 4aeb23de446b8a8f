//! What files set, all layers together.

use std::path::Path;
use std::time::Duration;

use gantry_engine::ProxyKind;
use proptest::prelude::*;
use tracing::level_filters::LevelFilter;

use super::*;

fn parse(text: &str) -> Result<(Config, Vec<String>), Vec<String>> {
    let mut config = Config::default();
    match config.parse(Path::new("config.toml"), text) {
        Ok(notices) => Ok((config, notices.iter().map(ToString::to_string).collect())),
        Err(mistakes) => Err(mistakes.iter().map(ToString::to_string).collect()),
    }
}

#[track_caller]
fn quiet(text: &str) -> Config {
    let (config, notices) = parse(text).unwrap();
    assert!(notices.is_empty(), "{notices:?}");
    config
}

#[test]
fn containerds_versions_one_to_four_mean_the_same() {
    let old = "root = '/r'\n[grpc]\naddress = '/s'\ngid = 7\nmax_send_message_size = 5\ntcp_address = '127.0.0.1:1'\n\
               [debug]\nlevel = 'debug'\naddress = '/d'\n[metrics]\naddress = '127.0.0.1:2'\n[ttrpc]\naddress = '/t'\n";
    let four = "version = 4\nroot = '/r'\n[debug]\nlevel = 'debug'\n\
                [plugins.'io.containerd.server.v1.grpc']\naddress = '/s'\ngid = 7\nmax_send_message_size = 5\n\
                [plugins.'io.containerd.server.v1.grpc-tcp']\naddress = '127.0.0.1:1'\nmax_send_message_size = 5\n\
                [plugins.'io.containerd.server.v1.debug']\naddress = '/d'\n\
                [plugins.'io.containerd.server.v1.metrics']\naddress = '127.0.0.1:2'\n\
                [plugins.'io.containerd.server.v1.ttrpc']\naddress = '/t'\n";
    let newest = quiet(four);
    assert_eq!((newest.root.as_path(), newest.grpc.address.as_path()), (Path::new("/r"), Path::new("/s")));
    assert_eq!((newest.grpc.owner.gid, newest.log_level), (7, LevelFilter::DEBUG));
    assert_eq!((newest.grpc.max_send, newest.tcp.max_send), (5, 5));
    for version in ["", "version = 1\n", "version = 2\n", "version = 3\n", "version = 4\n"] {
        assert_eq!(quiet(&format!("{version}{old}")), newest, "{version}");
    }
}

#[test]
fn the_socket_for_events_follows_the_main_one() {
    assert_eq!(quiet("[grpc]\naddress = '/s'\n").ttrpc_address(), Path::new("/s.ttrpc"));
}

#[test]
fn what_is_unknown_is_reported_with_its_line_and_what_was_meant() {
    let (_, notices) = parse("version = 4\nrot = '/r'\n\n[grpc]\nadress = '/s'\n[nonsense]\nx = 1\n").unwrap();
    assert_eq!(
        notices,
        [
            "config.toml:2: unknown key `rot`; did you mean `root`?",
            "config.toml:5: unknown key `plugins.\"io.containerd.server.v1.grpc\".adress`; did you mean `address`?",
            "config.toml:6: unknown key `nonsense`",
        ]
    );
    let text = "[plugins.'io.containerd.gc.v1.schedular']\nx = 1\n\
                [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nrunime_type = 'x'\n";
    let (_, notices) = parse(text).unwrap();
    assert_eq!(
        notices,
        [
            "config.toml:1: unknown key `plugins.\"io.containerd.gc.v1.schedular\"`; did you mean \
             `io.containerd.gc.v1.scheduler`?",
            "config.toml:4: unknown key \
             `plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.runime_type`; did you mean \
             `runtime_type`?",
        ]
    );
}

#[test]
fn what_means_nothing_here_is_named_with_the_reason_unless_it_says_nothing() {
    let text = "version = 4\n[cgroup]\npath = '/x'\n[plugins.'io.containerd.nri.v1.nri']\ndefault_validator = {enable = true}\n\
                [plugins.'io.containerd.snapshotter.v1.zfs']\nroot_path = ''\n";
    let (_, notices) = parse(text).unwrap();
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert!(notices[0].starts_with("config.toml:2: `cgroup` has no effect here: "), "{notices:?}");
    assert!(notices[1].contains("there is no validator but those that are plug-ins"), "{notices:?}");
}

#[test]
fn what_matters_to_other_shims_and_keys_alone_is_said() {
    let text = "[plugins.'io.containerd.cri.v1.images'.image_decryption]\nkey_model = 'cloud'\n\
                [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.vm]\n\
                runtime_type = 'io.containerd.kata.v2'\nio_type = 'streaming'\n";
    let (_, notices) = parse(text).unwrap();
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert!(notices[0].contains("no encrypted image will be opened"), "{notices:?}");
    assert!(notices[1].contains("`io_type = 'streaming'` has no effect here: "), "{notices:?}");
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = "version = 9\nroot = 'relative'\noom_score = 2000\ndisabled_plugins = ['cri']\n[debug]\nlevel = 'loud'\n\
                [proxy_plugins.x]\ntype = 'snapshoter'\n[gantry]\ndrain = 5\n";
    assert_eq!(
        parse(text).unwrap_err(),
        [
            "config.toml:1: `version` must be a version from 1 to 4",
            "config.toml:2: `root` must be an absolute path",
            "config.toml:3: `oom_score` must be a number from -1000 to 1000",
            "config.toml:4: `disabled_plugins` must be a list of names like io.containerd.snapshotter.v1.native",
            "config.toml:6: `debug.level` must be one of trace, debug, info, warn, error, fatal, panic",
            "config.toml:7: `proxy_plugins.x` lacks `address`",
            "config.toml:8: `proxy_plugins.x.type` must be one of snapshot, content, diff, sandbox",
            "config.toml:10: `gantry.drain` must be a duration like 10s, 1m30s or 100ms",
        ]
    );
}

#[test]
fn text_that_is_no_toml_is_told_by_line() {
    let mistakes = parse("version = 2\nroot = \n").unwrap_err();
    assert!(mistakes[0].starts_with("config.toml:2: "), "{mistakes:?}");
}

#[test]
fn our_own_section_is_read() {
    let config = quiet("[gantry]\ndrain = '2s'\n[gantry.runtimes]\n'a.b.v1' = '/shim'\n[gantry.limits]\ncalls = 9\n");
    assert_eq!((config.drain, config.limits.calls), (Duration::from_secs(2), 9));
    assert_eq!(config.engine().runtimes["a.b.v1"], Path::new("/shim"));
}

#[test]
fn waits_for_registries_and_limits_of_layers_reach_the_engine() {
    let text = "[gantry.registry]\nanswer_timeout = '2s'\nmax_failures = 3\n[gantry.unpack]\nmax_bytes = 4096\n\
                [plugins.'io.containerd.transfer.v1.local']\nconfig_path = '/a:/b'\n";
    let engine = quiet(text).engine();
    assert_eq!((engine.registry.answer_timeout, engine.registry.max_failures), (Duration::from_secs(2), 3));
    assert_eq!(engine.registry.hosts_dirs, [PathBuf::from("/a"), "/b".into()]);
    assert_eq!(engine.unpack.max_bytes, 4096);
}

#[test]
fn plug_ins_processors_collector_and_snapshotters_reach_the_engine() {
    let text = "version = 4\ntemp = '/tmp/x'\ndisabled_plugins = ['io.containerd.snapshotter.v1.native', \
                'io.containerd.image-verifier.v1.bindir']\n\
                [proxy_plugins.far]\ntype = 'snapshot'\naddress = 'unix:///run/far.sock'\ncapabilities = ['rebase']\n\
                exports = {root = '/far'}\n\
                [stream_processors.dec]\naccepts = ['a/b']\nreturns = 'c/d'\npath = 'dec'\nargs = ['-x']\nenv = ['A=B']\n\
                [plugins.'io.containerd.gc.v1.scheduler']\npause_threshold = 0.1\ndeletion_threshold = 5\n\
                [plugins.'io.containerd.snapshotter.v1.erofs']\ndefault_size = '2GiB'\n\
                [plugins.'io.containerd.service.v1.diff-service']\ndefault = ['erofs', 'walking']\n\
                [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = 'linux/arm64'\n\
                snapshotter = 'native'\n";
    let engine = quiet(text).engine();
    let far = &engine.proxy_plugins["far"];
    assert_eq!((far.kind, far.address.as_path()), (ProxyKind::Snapshot, Path::new("/run/far.sock")));
    assert_eq!((far.capabilities[0].as_str(), far.exports["root"].as_str()), ("rebase", "/far"));
    assert_eq!(engine.stream_processors["dec"].args, ["-x"]);
    let decoder = &engine.stream_processors["io.containerd.ocicrypt.decoder.v1.tar.gzip"];
    assert_eq!(decoder.accepts, ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted"]);
    assert_eq!((engine.gc.pause_threshold, engine.gc.deletion_threshold), (0.1, 5));
    assert_eq!(engine.gc.schedule_delay, gantry_engine::GcConfig::default().schedule_delay);
    assert_eq!(engine.snapshotters.disabled, ["native"]);
    assert_eq!(engine.snapshotters.erofs.default_size, 2 << 30);
    assert_eq!(engine.differs, ["erofs", "walking"]);
    assert_eq!(engine.unpack_platforms[0].platform, "linux/arm64");
    assert_eq!(engine.image_verifier, None);
    assert_eq!(engine.shim_environment, [("TMPDIR".to_owned(), "/tmp/x".to_owned())]);
}

#[test]
fn kubernetes_one_old_section_means_what_the_three_new_ones_mean() {
    let two = "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'x/pause:1'\n\
               stream_server_port = '1234'\nmax_container_log_line_size = -1\nimage_pull_progress_timeout = ''\n\
               [plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'native'\ndefault_runtime_name = 'k'\n\
               [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.k]\nruntime_type = 'io.containerd.kata.v2'\n\
               sandbox_mode = 'shim'\nruntime_engine = '/k'\npod_annotations = ['a.*']\noptions = {SystemdCgroup = true}\n\
               [plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = '/b'\nconf_dir = '/c'\n\
               [plugins.'io.containerd.grpc.v1.cri'.registry.mirrors.'h.example']\nendpoint = ['https://m.example']\n\
               [plugins.'io.containerd.grpc.v1.cri'.registry.configs.'h.example'.tls]\ninsecure_skip_verify = true\n\
               [plugins.'io.containerd.grpc.v1.cri'.registry.auths.'https://h.example/v2']\nusername = 'u'\n";
    let (config, notices) = parse(two).unwrap();
    assert!(notices.len() == 3 && notices.iter().all(|n| n.contains("is outdated, use")), "{notices:?}");
    let (runtime, images) = (&config.cri.runtime, &config.cri.images);
    assert_eq!(images.pinned_images["sandbox"], "x/pause:1");
    assert_eq!((images.snapshotter.as_str(), images.image_pull_progress_timeout), ("native", Duration::ZERO));
    assert_eq!((config.cri.server.stream_server_port, runtime.max_container_log_line_size), (1234, -1));
    let k = &runtime.runtimes["k"];
    assert_eq!((k.runtime_type.as_str(), k.sandboxer.as_str()), ("io.containerd.kata.v2", "shim"));
    assert_eq!((k.options["BinaryName"].as_str(), k.options["SystemdCgroup"].as_bool()), (Some("/k"), Some(true)));
    assert_eq!((runtime.cni.bin_dirs[0].as_path(), runtime.cni.conf_dir.as_path()), (Path::new("/b"), Path::new("/c")));
    assert!(runtime.runtimes.contains_key("runc"));
    assert_eq!(images.registry.mirrors["h.example"], ["https://m.example"]);
    assert!(images.registry.tls["h.example"].insecure_skip_verify);
    assert_eq!(images.registry.auths["h.example"].username, "u");
}

#[test]
fn rules_of_more_than_one_key_are_told() {
    let cases = [
        ("[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'x'\n", "no runtime `x`"),
        (
            "[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/x'\nmirrors.h.endpoint = ['y']\n",
            "`mirrors`",
        ),
        ("[plugins.'io.containerd.server.v1.grpc-tcp']\naddress = ':2376'\n", "has no TLS"),
        ("[plugins.'io.containerd.server.v1.grpc-tcp']\naddress = '127.0.0.1:1'\ntls_cert = '/c'\n", "go together"),
        ("[plugins.'io.containerd.server.v1.grpc-tcp']\naddress = '127.0.0.1:1'\ntls_ca = '/c'\n", "`tls_ca` needs"),
        ("required_plugins = ['a.b']\ndisabled_plugins = ['a.b']\n", "both required and disabled"),
    ];
    for (text, expected) in cases {
        let mistakes = parse(&format!("version = 4\n{text}")).unwrap_err();
        assert!(mistakes.len() == 1 && mistakes[0].contains(expected), "{text}: {mistakes:?}");
    }
    assert!(quiet("[grpc]\ntcp_address = ':1'\n[gantry]\nallow_plain_tcp = true\n").tcp.address.is_some());
    assert!(quiet("[grpc]\ntcp_address = 'localhost:1'\n").tcp.address.is_some());
}

#[test]
fn the_default_reads_back_and_every_key_is_in_it_or_may_be_unset() {
    let text = default_text();
    assert_eq!(quiet(&text), Config::default(), "{text}");
    for key in <Config as setting::Section>::KEYS {
        let last = key.path.last().copied().unwrap_or_default();
        assert!(text.contains(last) || (key.write)(&Config::default()).is_none(), "{last} is not in\n{text}");
    }
}

/// Lines that each set something, of every form of value.
const LINES: &[&str] = &[
    "root = '/r'",
    "temp = '/tmp/t'",
    "oom_score = -7",
    "disabled_plugins = ['a.b.v1.c']",
    "required_plugins = ['d.e.v1.f']",
    "debug.level = 'trace'",
    "debug.format = 'json'",
    "timeouts.'io.containerd.timeout.shim.load' = '1m1ms'",
    "plugins.'io.containerd.server.v1.grpc'.uid = 3",
    "plugins.'io.containerd.server.v1.grpc'.max_recv_message_size = 0",
    "plugins.'io.containerd.server.v1.grpc-tcp'.address = '[::1]:8'",
    "plugins.'io.containerd.server.v1.grpc-tcp'.max_recv_message_size = 8",
    "plugins.'io.containerd.server.v1.ttrpc'.address = '/t'",
    "plugins.'io.containerd.server.v1.debug'.address = '/d'",
    "plugins.'io.containerd.server.v1.metrics'.address = ':9'",
    "plugins.'io.containerd.transfer.v1.local'.config_path = '/a:/b'",
    "plugins.'io.containerd.transfer.v1.local'.max_concurrent_downloads = 9",
    "plugins.'io.containerd.transfer.v1.local'.unpack_config = [{platform = 'linux/arm64', snapshotter = 'native', differ = 'walking'}]",
    "plugins.'io.containerd.gc.v1.scheduler' = {pause_threshold = 0, startup_delay = '0'}",
    "plugins.'io.containerd.shim.v1.manager'.env = ['A=b', 'C=d=e']",
    "plugins.'io.containerd.image-verifier.v1.bindir' = {max_verifiers = -1, per_verifier_timeout = '1.5s'}",
    "plugins.'io.containerd.snapshotter.v1.overlayfs' = {root_path = '/o', mount_options = ['index=off']}",
    "plugins.'io.containerd.snapshotter.v1.erofs' = {default_size = '3g', set_immutable = true}",
    "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.x = {sandboxer = 'shim', options = {A = [1, 2.5, {b = 'c'}]}}",
    "plugins.'io.containerd.cri.v1.runtime'.cni = {ip_pref = 'cni', max_conf_num = 0, bin_dirs = ['/x', '/y']}",
    "plugins.'io.containerd.cri.v1.runtime'.stats_collect_period = '1s'",
    "plugins.'io.containerd.cri.v1.images'.stats_collect_period = 7",
    "plugins.'io.containerd.cri.v1.images'.pinned_images = {sandbox = 'p', other = 'q'}",
    "plugins.'io.containerd.cri.v1.images'.runtime_platforms.x.snapshotter = 'native'",
    "plugins.'io.containerd.cri.v1.images'.registry = {configs = {'h:1' = {auth = {username = 'u'}, tls = {ca_file = '/c'}}}, headers = {A = ['b']}}",
    "plugins.'io.containerd.grpc.v1.cri' = {stream_server_port = '10010', stream_idle_timeout = '1h'}",
    "proxy_plugins.'a b' = {type = 'content', address = '/a', exports = {k = 'v'}}",
    "stream_processors.'x.y' = {accepts = ['a'], returns = 'b', path = '/c', env = ['D=e']}",
    "gantry.default_runtime = 'a.b.v1'",
    "gantry.runtimes = {'c.d.v1' = '/d'}",
    "gantry.limits = {streams = 1}",
    "gantry.registry = {backoff = '1us', max_transfers = 1}",
    "gantry.check_at_start = false",
    "gantry.discard_unpacked_layers = true",
    "gantry.signature_policy = '/etc/gantry/signatures.toml'",
    "gantry.unpack.max_ratio = 5",
];

proptest! {
    #[test]
    fn what_is_dumped_reads_back_to_the_same(chosen in prop::sample::subsequence(LINES, 0..=LINES.len())) {
        let (config, _) = parse(&chosen.join("\n")).unwrap();
        let text = dump(&config);
        let (again, notices) = parse(&text).unwrap();
        prop_assert_eq!(&again, &config);
        prop_assert!(notices.iter().all(|notice| notice.contains("outdated")), "{:?}", notices);
        prop_assert_eq!(dump(&again), text);
    }

    #[test]
    fn what_is_migrated_means_the_same(chosen in prop::sample::subsequence(LINES, 0..=LINES.len()), old in 0..5usize) {
        let versions = ["", "version = 1\n", "version = 2\n", "version = 3\n", "version = 4\n"];
        let text = format!("{}{}\ngrpc.address = '/g'\n", versions[old], chosen.join("\n").replace("'io.containerd.server.v1.grpc'", "'x.y.v1.z'"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, &text).unwrap();
        let migrated = migrate(&path).unwrap();
        prop_assert!(migrated.contains("version = 4") && !migrated.contains("[grpc]"));
        prop_assert_eq!(parse(&migrated).unwrap().0, parse(&text).unwrap().0);
        std::fs::write(&path, &migrated).unwrap();
        prop_assert_eq!(migrate(&path).unwrap(), migrated);
    }

    #[test]
    fn nothing_a_file_can_hold_makes_the_reader_panic(text in "[ -~\n]{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_value_under_a_known_name_makes_the_reader_panic(
        line in prop::sample::select(LINES),
        value in prop::sample::select(&["0", "-1", "1.5", "true", "''", "'x'", "[]", "[1]", "['']", "{}", "{a = 1}", "1979-05-27"]),
    ) {
        let name = line.split(" = ").next().unwrap_or_default();
        if let Ok((config, _)) = parse(&format!("{name} = {value}\n")) {
            let _ = config.engine();
            prop_assert_eq!(parse(&dump(&config)).unwrap().0, config);
        }
    }
}
