//! Who is calling in the `tokens` mode: Firebase's ID tokens, and what only looks like one.

mod keys;
pub(crate) mod mint;

use quayside_shared::config::Auth;
use serde_json::{Value, json};

use crate::support::{answer, server, server_with};
use mint::{FIRST, Published, STRANGER, Stage, hs256, part, stage, stage_with, unsigned};

/// A token is refused, in the same words whatever is wrong with it.
#[track_caller]
fn refused(answered: &crate::support::Answer, what: &str) {
    assert_eq!(answered.status, 401, "{what}: {}", answered.text);
    answered.refused(401, "unauthenticated", Some("Authorization"));
    assert_eq!(answered.header("www-authenticate"), "Bearer");
    let detail = "this token is not accepted; sign in again and send a fresh Firebase ID token as `Authorization: Bearer <token>`";
    assert_eq!(answered.json()["detail"], detail, "{what}");
}

#[tokio::test]
async fn a_token_names_the_user_and_the_header_does_not() {
    let stage = stage().await;
    let server = &stage.server;
    let ann = FIRST.token(&stage.claims("ann"));
    let submit = |token: &str| stage.request("POST", "/api/conversation", token).json(&json!({"message": "x"}));
    for users in [&[][..], &["mallory"], &["mallory", "bob"], &["not a name"], &[""]] {
        let request = users.iter().fold(submit(&ann), |request, user| request.header("x-user-id", *user));
        let run = answer(request).await;
        assert_eq!((run.status, &run.json()["userId"]), (202, &json!("ann")), "{users:?}");
    }
    let run = answer(submit(&ann)).await.json()["id"].as_str().unwrap().to_owned();
    let mallory = FIRST.token(&stage.claims("mallory"));
    for (method, path, status) in [
        ("GET", format!("/api/runs/{run}"), 200),
        ("GET", format!("/api/runs/{run}?wait=1"), 200),
        ("POST", format!("/api/runs/{run}/cancel"), 202),
        ("GET", format!("/api/runs/{run}/events"), 200),
        ("GET", "/api/conversations".to_owned(), 200),
    ] {
        let answered = answer(stage.request(method, &path, &ann)).await;
        assert_eq!(answered.status, status, "{method} {path}: {}", answered.text);
        if path.contains(&run) {
            answer(stage.request(method, &path, &mallory).header("x-user-id", "ann")).await.refused(404, "not_found", None);
        }
    }
    // The scheme's case does not matter; every character that an id may have reaches us as it is.
    let authorization = format!("bEARER {ann}");
    assert_eq!(answer(server.client.get(server.url("/api/agents")).header("authorization", authorization)).await.status, 200);
    let long = "u".repeat(128);
    for user in ["a", "s0me-Uid_28chars", "../x", "'--", &long] {
        let run = answer(submit(&FIRST.token(&stage.claims(user)))).await.json();
        assert_eq!(run["userId"], user);
    }
}

#[tokio::test]
async fn without_a_token_nobody_comes_in_on_any_route_of_a_user() {
    let stage = stage().await;
    let server = &stage.server;
    let good = stage.good(&FIRST);
    assert_eq!(stage.ask(&good).await.status, 200);
    let (bearer, twice) = (format!("Bearer {good}"), format!("Bearer {good}, Bearer {good}"));
    let (basic, bare, tab) = (format!("Basic {good}"), good.clone(), format!("Bearer\t{good}"));
    let cases: [&[&str]; 11] =
        [&[], &[""], &["Bearer"], &["Bearer "], &[&basic], &[&bare], &[&tab], &[&bearer, &bearer], &[&bearer, "Basic x"], &[&twice], &["Bearer ünn"]];
    for (method, path) in [
        ("POST", "/api/conversation"),
        ("GET", "/api/runs/run_0000000000000000000000"),
        ("GET", "/api/runs/run_0000000000000000000000/events"),
        ("POST", "/api/runs/run_0000000000000000000000/cancel"),
        ("GET", "/api/conversations"),
        ("GET", "/api/conversations/c"),
        ("GET", "/api/conversations/c/runs"),
        ("DELETE", "/api/conversations/c"),
        ("GET", "/api/agents"),
    ] {
        for values in cases {
            let request = server.client.request(method.parse().unwrap(), server.url(path)).header("x-user-id", "ann");
            let request = request.header("content-type", "application/json").body(r#"{"message":"x"}"#);
            let request = values
                .iter()
                .fold(request, |request, value| request.header("authorization", reqwest::header::HeaderValue::from_bytes(value.as_bytes()).unwrap()));
            let answered = answer(request).await;
            assert_eq!(answered.status, 401, "{method} {path} {values:?}");
            answered.refused(401, "unauthenticated", Some("Authorization"));
            assert_eq!(answered.header("www-authenticate"), "Bearer");
            assert!(answered.json()["detail"].as_str().unwrap().contains("Bearer") || values.len() == 2, "{}", answered.text);
        }
    }
    let asked = server.client.get(server.url(&format!("/api/agents?access_token={good}&token={good}"))).header("cookie", format!("__session={good}"));
    assert_eq!(answer(asked).await.status, 401);
    assert_eq!(server.stored().await, 0);
    // What is nobody's needs no token.
    for path in ["/", "/livez", "/readyz", "/openapi.json"] {
        assert_eq!(answer(server.client.get(server.url(path))).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn claims_that_do_not_hold_are_refused() {
    let stage = stage().await;
    let now = stage.now();
    let other = "https://securetoken.google.com/other-project";
    let ours = format!("https://securetoken.google.com/{}", mint::PROJECT);
    let long = "u".repeat(129);
    let cases: &[(&str, &[Value])] = &[
        ("iss", &[json!(other), json!("https://accounts.google.com"), json!(format!("{ours}/")), json!(mint::PROJECT), json!([ours.clone()])]),
        ("iss", &[json!("https://session.firebase.google.com/quayside-prod"), json!(ours.to_uppercase()), json!(""), json!(7), Value::Null]),
        ("aud", &[json!("other-project"), json!([mint::PROJECT]), json!([mint::PROJECT, "other"]), json!(""), json!(ours), json!({}), Value::Null]),
        ("exp", &[json!(now - 60), json!(0), json!(-1), json!("9999999999"), json!(1e300), json!(now as f64 + 0.5), json!([now + 60]), Value::Null]),
        ("nbf", &[json!(now + 60), json!(u64::MAX), json!("soon"), Value::Null]),
        ("iat", &[json!(now + 60), json!(9_999_999_999_u64), json!(u64::MAX), json!(0), json!(-1), json!(now - 86_401), json!("now"), Value::Null]),
        ("auth_time", &[json!(now + 60), json!(u64::MAX), json!(-1), json!("now"), Value::Null]),
        ("sub", &[json!(""), json!(" "), json!("a b"), json!("ünn"), json!(long), json!("a\u{0}"), json!(7), json!(["ann"]), Value::Null]),
    ];
    for (name, values) in cases {
        for value in *values {
            refused(&stage.ask(&stage.claiming(|claims| claims[*name] = value.clone())).await, &format!("{name} = {value}"));
        }
    }
    for name in ["iss", "aud", "exp", "iat", "sub"] {
        refused(&stage.ask(&stage.claiming(|claims| drop(claims.as_object_mut().unwrap().remove(name)))).await, &format!("no {name}"));
    }
    // Clocks differ a little, and what Firebase leaves out may be left out.
    for (name, value) in [("exp", now - 20), ("nbf", now + 20), ("nbf", now - 20), ("iat", now + 20), ("iat", now - 3600), ("auth_time", now + 20)] {
        let token = stage.claiming(|claims| claims[name] = json!(value));
        assert_eq!(stage.ask(&token).await.status, 200, "{name} = now {}", value - now);
    }
    assert_eq!(stage.ask(&stage.claiming(|claims| drop(claims.as_object_mut().unwrap().remove("auth_time")))).await.status, 200);
    // The claim says it twice, and readers differ in which counts.
    let claims = stage.claims("ann").to_string().replacen('{', r#"{"sub":"mallory","#, 1);
    refused(&stage.ask(&FIRST.sign_text(&FIRST.header(), &claims)).await, "two subjects");
}

#[tokio::test]
async fn headers_that_reach_for_another_key_or_algorithm_are_refused() {
    let stage = stage().await;
    let claims = stage.claims("ann");
    let mut forged: Vec<(String, String)> = Vec::new();
    let mut add = |what: &str, token: String| forged.push((what.to_owned(), token));
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        let header = json!({"alg": alg, "typ": "JWT", "kid": "first"});
        add(&format!("alg {alg}, unsigned"), format!("{}.{}.", part(&header), part(&claims)));
        add(&format!("alg {alg}, signed"), FIRST.sign(&header, &claims));
    }
    for secret in FIRST.public_files().iter().map(Vec::as_slice).chain([&b""[..], b"first", FIRST.jwk()["n"].as_str().unwrap().as_bytes()]) {
        for alg in ["HS256", "RS256"] {
            add("HS256 with the public key", hs256(secret, &json!({"alg": alg, "typ": "JWT", "kid": "first"}), &claims));
        }
    }
    add("PS256", FIRST.sign_ps256(&json!({"alg": "PS256", "kid": "first"}), &claims));
    add("PS256 called RS256", FIRST.sign_ps256(&FIRST.header(), &claims));
    add("RS512", FIRST.sign_rs512(&json!({"alg": "RS512", "kid": "first"}), &claims));
    for alg in ["ES256", "EdDSA", "rs256", "RS256 "] {
        add(alg, stage.headed(|header| header["alg"] = json!(alg)));
    }
    for alg in [Value::Null, json!(["RS256"]), json!(7)] {
        add("alg of another type", stage.headed(|header| header["alg"] = alg));
    }
    for kid in
        ["../../dev/null", "/dev/null", "first' OR '1'='1", "first\u{0}", "' UNION SELECT 'x'--", "", "FIRST", "first ", "http://evil.example/k"]
    {
        add(&format!("kid {kid:?}"), stage.headed(|header| header["kid"] = json!(kid)));
        add(&format!("kid {kid:?}, empty secret"), hs256(b"", &json!({"alg": "HS256", "typ": "JWT", "kid": kid}), &claims));
    }
    for kid in [Value::Null, json!(["first"]), json!(0)] {
        add("kid of another type", stage.headed(|header| header["kid"] = kid));
    }
    add("no kid", stage.headed(|header| drop(header.as_object_mut().unwrap().remove("kid"))));
    add("a stranger's key", STRANGER.token(&claims));

    // Where a stranger's key can be had, and the same in a token that the right key signed: no such header is ours.
    let evil = mint::KeyServer::start(Published::keys(&[&STRANGER])).await;
    let url = json!(format!("http://{}/keys", evil.address));
    for (name, value) in [("jku", &url), ("x5u", &url), ("jwk", &STRANGER.jwk()), ("x5c", &json!(["MIIB"])), ("crit", &json!(["b64"]))] {
        let mut header = FIRST.header();
        header[name] = value.clone();
        add(&format!("{name}, a stranger's key"), STRANGER.sign(&header, &claims));
        add(&format!("{name}, the right key"), FIRST.sign(&header, &claims));
    }
    for crit in [json!(["exp"]), json!([]), json!("b64"), Value::Null] {
        add("crit", stage.headed(|header| header["crit"] = crit));
    }
    add("crit and b64", stage.headed(|header| (header["crit"], header["b64"]) = (json!(["b64"]), json!(false))));
    for typ in ["at+jwt", "logout+jwt", "JWE", "", "application/at+jwt"] {
        add(&format!("typ {typ}"), stage.headed(|header| header["typ"] = json!(typ)));
    }
    for (what, token) in &forged {
        refused(&stage.ask(token).await, what);
    }
    assert_eq!(evil.fetches(), 0);
    for typ in [json!("JWT"), json!("jwt"), Value::Null] {
        assert_eq!(stage.ask(&stage.headed(|header| header["typ"] = typ)).await.status, 200);
    }
}

#[tokio::test]
async fn what_is_no_token_at_all_is_refused() {
    let stage = stage().await;
    let (good, claims) = (stage.good(&FIRST), stage.claims("ann"));
    let parts: Vec<&str> = good.split('.').collect();
    let [header, payload, signature] = parts[..] else { panic!("{good}") };
    let mallory = part(&stage.claims("mallory"));
    let two = format!("{good}.{signature}");
    let json_form =
        json!({"payload": payload, "signatures": [{"protected": header, "signature": signature}, {"protected": header, "signature": "x"}]});
    let flipped = format!("{header}.{payload}.{}{}", if signature.starts_with('A') { "B" } else { "A" }, &signature[1..]);
    let cases = [
        ("another payload", format!("{header}.{mallory}.{signature}")),
        ("two signatures", two),
        ("two signatures, JSON", json_form.to_string()),
        ("a bit flipped", flipped),
        ("half a signature", good[..good.len() - 20].to_owned()),
        ("no signature", format!("{header}.{payload}.")),
        ("two parts", format!("{header}.{payload}")),
        ("empty parts", "..".to_owned()),
        ("a dot behind", format!("{good}.")),
        ("padded", format!("{header}=.{payload}.{signature}")),
        ("base64, not base64url", format!("{header}.{payload}.{}", signature.replace('-', "+").replace('_', "/") + "+/==")),
        ("an access token of Google's", "ya29.a0AfH6SMBx_example-access-token-that-is-opaque".to_owned()),
        ("an API key", "AIzaSyA-example-example-example-example".to_owned()),
        ("a payload of text", FIRST.sign_text(&FIRST.header(), "\"ann\"")),
        ("a payload of a list", FIRST.sign_text(&FIRST.header(), "[]")),
        ("a payload too deep", FIRST.sign_text(&FIRST.header(), &"[".repeat(2000))),
        ("a large token", stage.claiming(|claims| claims["pad"] = json!("x".repeat(16 << 10)))),
        ("64 KiB", stage.claiming(|claims| claims["pad"] = json!("x".repeat((64 << 10) * 3 / 4)))),
        ("64 KiB of dots", ".".repeat(64 << 10)),
        ("64 KiB of letters", "x".repeat(64 << 10)),
    ];
    for (what, token) in &cases {
        refused(&stage.ask(token).await, what);
    }
    // The largest that is read is read.
    assert_eq!(stage.ask(&FIRST.token(&{ claims })).await.status, 200);
    assert_eq!(stage.ask(&stage.claiming(|claims| claims["pad"] = json!("x".repeat(10 << 10)))).await.status, 200);
}

#[tokio::test]
async fn unsigned_tokens_count_only_with_the_emulator_and_a_demo_project() {
    let project = |name: &'static str, emulator: bool| {
        stage_with(Published::keys(&[&FIRST]), move |config| {
            config.google.project_id = name.to_owned();
            config.google.auth_emulator = emulator.then(|| "127.0.0.1:9099".to_owned());
        })
    };
    for (name, emulator) in [("demo-quayside", false), (mint::PROJECT, true), (mint::PROJECT, false), ("not-demo-quayside", true)] {
        let stage = project(name, emulator).await;
        let claims = stage.claims_of(name, "ann");
        assert_eq!(stage.ask(&FIRST.token(&claims)).await.status, 200, "{name}");
        refused(&stage.ask(&unsigned(&claims)).await, &format!("{name}, emulator: {emulator}"));
    }
    let stage = project("demo-quayside", true).await;
    let claims = |change: &dyn Fn(&mut Value)| {
        let mut claims = stage.claims_of("demo-quayside", "ann");
        change(&mut claims);
        claims
    };
    let good = claims(&|_| {});
    assert_eq!(stage.ask(&unsigned(&good)).await.status, 200);
    // Nothing is fetched for tokens that need no key.
    assert_eq!((stage.ready().await.0, stage.keys.fetches()), (200, 0));
    let now = stage.now();
    let wrong: [(&str, Value); 12] = [
        ("iss", json!("https://securetoken.google.com/demo-other")),
        ("aud", json!("demo-other")),
        ("aud", json!(["demo-quayside"])),
        ("exp", json!(now - 60)),
        ("exp", json!("later")),
        ("nbf", json!(now + 60)),
        ("iat", json!(now + 60)),
        ("iat", json!(0)),
        ("auth_time", json!(now + 60)),
        ("sub", json!("")),
        ("sub", json!("a b")),
        ("sub", Value::Null),
    ];
    for (name, value) in wrong {
        refused(&stage.ask(&unsigned(&claims(&|claims| claims[name] = value.clone()))).await, &format!("{name} = {value}"));
    }
    for name in ["iss", "aud", "exp", "iat", "sub"] {
        refused(&stage.ask(&unsigned(&claims(&|claims| drop(claims.as_object_mut().unwrap().remove(name))))).await, name);
    }
    for alg in ["None", "NONE", "", "HS256"] {
        let header = json!({"alg": alg, "typ": "JWT"});
        refused(&stage.ask(&format!("{}.{}.", part(&header), part(&good))).await, alg);
    }
    let signed = FIRST.sign(&json!({"alg": "none", "typ": "JWT"}), &good);
    refused(&stage.ask(&signed).await, "none with a signature");
    for behind in [".", ".x", "x"] {
        refused(&stage.ask(&format!("{}{behind}", unsigned(&good))).await, "none with something behind it");
    }
    refused(&stage.ask(&format!("{}.{}.", part(&json!({"alg": "none", "crit": ["x"]})), part(&good))).await, "none with crit");
    refused(&stage.ask(&format!("{}.{}.", part(&FIRST.header()), part(&good))).await, "RS256 without a signature");
    // Signed ones are verified as ever.
    refused(&stage.ask(&STRANGER.token(&good)).await, "a stranger's key");
    assert_eq!((stage.ask(&FIRST.token(&good)).await.status, stage.keys.fetches()), (200, 1));
}

#[tokio::test]
async fn the_document_tells_what_this_server_asks_for() {
    let schemes = async |stage: &crate::support::Server| {
        let document = answer(stage.client.get(stage.url("/openapi.json"))).await.json();
        let security: std::collections::BTreeSet<String> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(path, _)| path.starts_with("/api/") && !path.starts_with("/api/admin/"))
            .flat_map(|(_, item)| item.as_object().unwrap().values())
            .map(|operation| operation["security"].to_string())
            .collect();
        (document["components"]["securitySchemes"].clone(), security.into_iter().collect::<Vec<_>>())
    };
    let (tokens, security) = schemes(&stage().await.server).await;
    assert_eq!(tokens.as_object().unwrap().keys().collect::<Vec<_>>(), ["admin", "token"]);
    assert_eq!((&tokens["token"]["type"], &tokens["token"]["scheme"]), (&json!("http"), &json!("bearer")));
    assert_eq!((&tokens["token"]["bearerFormat"], security), (&json!("JWT"), vec![r#"[{"token":[]}]"#.to_owned()]));
    let (header, security) = schemes(&server().await).await;
    assert_eq!(header.as_object().unwrap().keys().collect::<Vec<_>>(), ["admin", "user"]);
    assert_eq!((&header["user"]["name"], security), (&json!("X-User-Id"), vec![r#"[{"user":[]}]"#.to_owned()]));
    let both = serde_json::to_value(quayside_api::openapi()).unwrap();
    assert_eq!(both["paths"]["/api/agents"]["get"]["security"], json!([{"user": []}, {"token": []}]));
    assert_eq!(both["paths"]["/api/admin/workers"]["get"]["security"], json!([{"admin": []}]));
    assert_eq!(both["components"]["securitySchemes"].as_object().unwrap().len(), 3);
    assert!(both["paths"]["/livez"]["get"].get("security").is_none());
}

#[tokio::test]
async fn pages_of_allowed_origins_may_send_a_token() {
    const ORIGIN: &str = "https://app.example.org";
    let server = server_with(|setup| {
        setup.config.api.auth = Auth::Tokens;
        setup.config.api.cors_origins = vec![ORIGIN.to_owned()];
        setup.config.google.auth_emulator = Some("127.0.0.1:9099".to_owned());
    })
    .await;
    let preflight = server.client.request("OPTIONS".parse().unwrap(), server.url("/api/conversation")).header("origin", ORIGIN);
    let preflight = preflight.header("access-control-request-method", "POST").header("access-control-request-headers", "authorization");
    let preflight = answer(preflight).await;
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (200, ORIGIN));
    assert!(preflight.header("access-control-allow-headers").split(',').any(|name| name == "authorization"));
}

impl Stage {
    async fn ready(&self) -> (u16, Value) {
        let answered = answer(self.server.client.get(self.server.url("/readyz"))).await;
        let checks = answered.json()["checks"].as_array().unwrap().clone();
        (answered.status, checks.into_iter().find(|check| check["name"] == "tokens").unwrap())
    }
}
