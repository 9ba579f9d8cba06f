use super::*;

fn load(toml: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quayside.toml");
    std::fs::write(&path, toml).unwrap();
    Config::load(Some(&path), environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

fn refusal(toml: &str, environment: &[(&str, &str)]) -> String {
    load(toml, environment).unwrap_err().to_string()
}

#[test]
fn an_empty_file_gives_the_documented_defaults() {
    let config = load("", &[]).unwrap();
    assert_eq!(config.api.bind.to_string(), "127.0.0.1:8080");
    assert_eq!(config.limits.message.bytes(), 65536);
    assert_eq!(config.worker.lease.get(), Duration::from_secs(30));
    let python = &config.agents[&python()];
    assert_eq!((python.memory, python.pids, python.network), (1 << 30, 128, Network::None));
}

#[test]
fn the_environment_overrides_the_file() {
    let config = load(
        "[worker]\nslots = 1\n",
        &[("QUAYSIDE__WORKER__SLOTS", "7"), ("QUAYSIDE__WORKER__LEASE", "40s"), ("QUAYSIDE__API__BIND", "127.0.0.1:0"), ("OTHER", "x")],
    )
    .unwrap();
    assert_eq!(config.worker.slots, 7);
    assert_eq!(config.worker.lease.get(), Duration::from_secs(40));
    assert_eq!(config.api.bind.port(), 0);
}

#[test]
fn a_secret_for_an_agent_may_come_from_the_environment_alone() {
    let config = load("[agents.claude]\nimage = \"x\"\n", &[("QUAYSIDE__AGENTS__CLAUDE__ENV__API_Key", "123")]).unwrap();
    assert_eq!(config.agents[&"claude".parse().unwrap()].env, [("API_Key".to_owned(), "123".to_owned())]);
}

#[test]
fn an_agent_may_be_made_of_image_and_command_alone() {
    let config = load("[agents.echo]\nimage = \"x\"\ncommand = [\"cat\"]\n", &[]).unwrap();
    assert_eq!(config.agents[&"echo".parse().unwrap()].command, ["cat"]);
    assert!(config.agents.contains_key(&python()), "the built-in agent stays");
}

#[test]
fn unknown_keys_name_the_file_the_key_and_the_known_ones() {
    let text = refusal("[api]\nbnd = \"127.0.0.1:1\"\n", &[]);
    assert!(text.contains("quayside.toml") && text.contains("`api.bnd`") && text.contains("bind"), "{text}");
    let text = refusal("[nonsense]\n", &[]);
    assert!(text.contains("nonsense") && text.contains("expected"), "{text}");
}

#[test]
fn a_bad_variable_is_named() {
    let text = refusal("", &[("QUAYSIDE__WORKER__SLOTZ", "1")]);
    assert!(text.contains("QUAYSIDE__WORKER__SLOTZ"), "{text}");
    assert!(refusal("", &[("QUAYSIDE__WORKER", "1")]).contains("QUAYSIDE__SECTION__KEY"));
}

#[test]
fn the_preemption_notice_is_asked_by_plain_http() {
    let written = |value: &str| format!("[worker]\npreemption_notice = \"{value}\"\n");
    let google = "http://metadata.google.internal/computeMetadata/v1/instance/preempted";
    assert_eq!(load(&written(google), &[]).unwrap().worker.preemption_notice.as_deref(), Some(google));
    assert_eq!(load("", &[]).unwrap().worker.preemption_notice, None);
    for wrong in ["https://metadata.google.internal/preempted", "metadata.google.internal/preempted", "http://", "/preempted", ""] {
        let text = refusal(&written(wrong), &[]);
        assert!(text.contains("worker.preemption_notice") && text.contains("http://metadata"), "{wrong}: {text}");
    }
}

#[test]
fn bare_numbers_are_refused() {
    for toml in ["[worker]\nlease = 30\n", "[worker]\nlease = \"30\"\n", "[limits]\nmessage = 65536\n", "[limits]\nmessage = \"65536\"\n"] {
        let text = refusal(toml, &[]);
        assert!(text.contains("with its unit"), "{text}");
    }
}

#[test]
fn contradictions_say_what_to_write() {
    assert!(refusal("[worker]\nlease = \"10s\"\nheartbeat = \"9s\"\n", &[]).contains("half of worker.lease"));
    assert!(refusal("[limits]\nqueued = 0\n", &[]).contains("at least 1"));
    assert!(refusal("[backend]\nreserve = 64\n", &[]).contains("with its unit"));
    assert!(refusal("[api]\ndefault_agent = \"ghost\"\n", &[]).contains("[agents.ghost]"));
    assert!(refusal("[api]\ncors_origins = [\"*\"]\n", &[]).contains("without a path or a wildcard"));
    assert!(refusal("[agents.x]\ncommand = [\"a\"]\n", &[]).contains("needs an image"));
    assert!(refusal("[agents.x]\nimage = \"a\"\nmemory = \"1KiB\"\n", &[]).contains("6MiB"));
}

#[test]
fn a_missing_file_that_was_named_is_an_error() {
    let error = Config::load(Some(std::path::Path::new("/nonexistent/q.toml")), []).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/q.toml"));
}

#[test]
fn a_demo_project_needs_its_emulators() {
    let google = "[backend]\nkind = \"google\"\n";
    let text = refusal(google, &[("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")]);
    assert!(text.contains("google.project_id") && text.contains("FIRESTORE_EMULATOR_HOST"), "{text}");
    let emulators = [("PUBSUB_EMULATOR_HOST", "127.0.0.1:1"), ("FIRESTORE_EMULATOR_HOST", "http://[::1]:2/"), ("FIREBASE_AUTH_EMULATOR_HOST", "")];
    let config = load(google, &emulators).unwrap().google;
    assert_eq!((config.pubsub_emulator.as_deref(), config.firestore_emulator.as_deref()), (Some("127.0.0.1:1"), Some("[::1]:2")));
    assert_eq!((config.auth_emulator, config.dead_letter_topic.as_str()), (None, "runs-dead-letters"));
    load("[backend]\nkind = \"google\"\n[google]\nproject_id = \"real\"\n", &[]).unwrap();
}

#[test]
fn names_that_pubsub_would_refuse_are_refused_here() {
    for (key, value) in [
        ("topic", "t1"),
        ("subscription", "goog-runs"),
        ("topic", "a/b"),
        ("dead_letter_topic", "runs"),
        ("project_id", "a b"),
        ("firebase_sdk", "ftp://x"),
    ] {
        let text = refusal(&format!("[google]\n{key} = \"{value}\"\n"), &[]);
        assert!(text.contains(&format!("google.{key}")), "{text}");
    }
}

#[test]
fn what_idles_has_its_bounds() {
    let config = load("[worker]\nwarm_memory = \"0B\"\n[agents.python]\nwarm = 3\nsession = \"conversation\"\nidle = \"90s\"\n", &[]).unwrap();
    assert_eq!((config.worker.warm_memory.map(HumanSize::bytes), config.worker.session_memory), (Some(0), None));
    let python = &config.agents[&python()];
    assert_eq!((python.warm, python.session, python.idle), (Some(3), Session::Conversation, Duration::from_secs(90)));
    assert_eq!(load("", &[]).unwrap().agents[&self::python()].idle, Duration::from_secs(600));
    let text = refusal("[agents.python]\nidle = \"0s\"\n", &[]);
    assert!(text.contains("agents.python.idle") && text.contains("more than 0"), "{text}");
}
