//! Documents as real tools write them, and as hostile ones do.

use super::*;
use proptest::prelude::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn descriptor(extra: &str) -> String {
    format!(
        r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{DIGEST}","size":3{extra}}}"#
    )
}

#[test]
fn an_image_that_is_also_an_index_is_refused() {
    let entry = descriptor("");
    let both =
        format!(r#"{{"schemaVersion":2,"manifests":[{entry}],"config":{entry},"layers":[]}}"#);
    assert!(matches!(
        Document::parse(both.as_bytes(), &Limits::default()),
        Err(ManifestError::Ambiguous)
    ));
    let old = br#"{"schemaVersion":1,"fsLayers":[]}"#;
    assert!(matches!(
        Document::parse(old, &Limits::default()),
        Err(ManifestError::Schema1)
    ));
}

#[test]
fn the_best_platform_of_an_index_is_chosen_and_a_miss_names_the_offers() {
    let entry = |arch: &str, variant: &str| {
        descriptor(&format!(
            r#","platform":{{"os":"linux","architecture":"{arch}","variant":"{variant}"}}"#
        ))
    };
    let text = format!(
        r#"{{"schemaVersion":2,"manifests":[{},{},{}]}}"#,
        entry("arm", "v6"),
        entry("arm", "v7"),
        descriptor(r#","platform":{"os":"linux","architecture":"amd64"}"#),
    );
    let Ok(Document::Index(index)) = Document::parse(text.as_bytes(), &Limits::default()) else {
        panic!("an index");
    };
    let pick = |p: &str| {
        index
            .select(&p.parse().unwrap())
            .map(|d| d.platform.clone().unwrap())
    };
    assert_eq!(pick("linux/arm/v7").unwrap().variant.as_deref(), Some("v7"));
    assert_eq!(pick("linux/arm/v6").unwrap().variant.as_deref(), Some("v6"));
    assert_eq!(pick("linux/amd64").unwrap().architecture, "amd64");
    let miss = pick("linux/riscv64").unwrap_err().to_string();
    assert!(
        miss.contains("linux/riscv64") && miss.contains("linux/arm/v7"),
        "{miss}"
    );
}

#[test]
fn nulls_of_go_programs_mean_empty() {
    let text = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Env":null,"Cmd":["sh"],"Entrypoint":null,
        "Volumes":null,"Labels":null,"ExposedPorts":{{"80/tcp":{{}}}},"Healthcheck":{{"Test":["NONE"]}}}},
        "rootfs":{{"type":"layers","diff_ids":["{DIGEST}"]}},"history":null}}"#
    );
    let config = ImageConfig::parse(text.as_bytes(), &Limits::default()).unwrap();
    assert_eq!(config.config.cmd, ["sh"]);
    assert!(config.config.exposed_ports.contains_key("80/tcp"));
    let back = serde_json::to_vec(&config).unwrap();
    assert_eq!(
        ImageConfig::parse(&back, &Limits::default()).unwrap(),
        config
    );
}

#[test]
fn size_and_count_limits_come_first() {
    let limits = Limits {
        manifest_bytes: 64,
        layers: 1,
        ..Limits::default()
    };
    let long = [b' '; 65];
    assert!(matches!(
        Document::parse(&long, &limits),
        Err(ManifestError::TooLarge { .. })
    ));
    let limits = Limits {
        layers: 1,
        ..Limits::default()
    };
    let text = format!(
        r#"{{"schemaVersion":2,"config":{0},"layers":[{0},{0}]}}"#,
        descriptor("")
    );
    assert!(matches!(
        Document::parse(text.as_bytes(), &limits),
        Err(ManifestError::TooMany {
            count: 2,
            limit: 1,
            ..
        })
    ));
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(data in prop::collection::vec(any::<u8>(), 0..200)) {
        crate::fuzzing::manifest(&data);
    }

    #[test]
    fn any_json_like_text_is_parsed_or_refused(
        text in r#"\{("schemaVersion":2,)?("(manifests|layers|config|rootfs)":(null|\[\]|\{\}|3|"x"),?){0,4}\}"#
    ) {
        crate::fuzzing::manifest(text.as_bytes());
    }
}
