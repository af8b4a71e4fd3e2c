use super::directory::DirectoryCopy;
use super::document::{Applications, State};
use super::*;
use std::time::Duration;

/// As Spring Cloud Netflix writes it.
const JSON: &str = r#"{"applications":{"versions__delta":"1","apps__hashcode":"DOWN_1_UP_2_","application":[
    {"name":"USERS","instance":[
        {"instanceId":"a:users:8080","hostName":"a.internal","app":"USERS","ipAddr":"10.0.0.1","status":"UP","overriddenStatus":"UNKNOWN",
         "port":{"$":8080,"@enabled":"true"},"securePort":{"$":443,"@enabled":"false"},"countryId":1,
         "dataCenterInfo":{"@class":"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo","name":"MyOwn"},
         "leaseInfo":{"renewalIntervalInSecs":30,"durationInSecs":90,"registrationTimestamp":1,"lastRenewalTimestamp":1,"evictionTimestamp":0,"serviceUpTimestamp":1},
         "metadata":{"management.port":"8080","zone":"eu-1a","weight":"7"},"vipAddress":"users","actionType":"ADDED"},
        {"instanceId":"b:users:8080","hostName":"b.internal","app":"USERS","ipAddr":"10.0.0.2","status":"DOWN",
         "port":{"$":8080,"@enabled":"true"},"securePort":{"$":443,"@enabled":"true"},
         "metadata":{"@class":"java.util.Collections$EmptyMap"}}]},
    {"name":"ORDERS","instance":[
        {"instanceId":"c:orders:80","hostName":"c.internal","app":"ORDERS","ipAddr":"10.0.0.3","status":"UP",
         "port":{"$":"80","@enabled":"false"},"securePort":{"$":"8443","@enabled":"true"},
         "dataCenterInfo":{"name":"Amazon","metadata":{"availability-zone":"us-east-1c"}}}]}]}}"#;

/// The same in XML, but for members of lists that stand alone there.
const XML: &str = r#"<?xml version="1.0"?>
<applications><versions__delta>1</versions__delta><apps__hashcode>DOWN_1_UP_2_</apps__hashcode>
  <application><name>USERS</name>
    <instance><instanceId>a:users:8080</instanceId><hostName>a.internal</hostName><app>USERS</app><ipAddr>10.0.0.1</ipAddr><status>UP</status>
      <port enabled="true">8080</port><securePort enabled="false">443</securePort><countryId>1</countryId>
      <dataCenterInfo class="com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo"><name>MyOwn</name></dataCenterInfo>
      <metadata><management.port>8080</management.port><zone>eu&#45;1a</zone><weight><![CDATA[7]]></weight></metadata><actionType>ADDED</actionType></instance>
    <instance><instanceId>b:users:8080</instanceId><hostName>b.internal</hostName><app>USERS</app><ipAddr>10.0.0.2</ipAddr><status>DOWN</status>
      <port enabled="true">8080</port><securePort enabled="true">443</securePort>
      <metadata class="java.util.Collections$EmptyMap"/></instance>
  </application>
  <application><name>ORDERS</name>
    <instance><instanceId>c:orders:80</instanceId><hostName>c.internal</hostName><app>ORDERS</app><ipAddr>10.0.0.3</ipAddr><status>UP</status>
      <port enabled="false">80</port><securePort enabled="true">8443</securePort>
      <dataCenterInfo><name>Amazon</name><metadata><availability-zone>us-east-1c</availability-zone></metadata></dataCenterInfo></instance>
  </application>
</applications>"#;

fn json(text: &str) -> Applications {
    Applications::read(text.as_bytes(), false).unwrap()
}

fn source(application: &str, change: impl FnOnce(&mut EurekaConfig)) -> Eureka {
    let mut config = EurekaConfig {
        application: application.into(),
        servers: Vec::new(),
        username: None,
        password: None,
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(5),
        secure_port: false,
        host_names: false,
        ca: None,
    };
    change(&mut config);
    let reading = Reading { zone_label: "zone".into(), bytes_max: 1 << 20 };
    Eureka::new(Arc::new(config), &reading)
}

/// Addresses of an answer, and what is wrong with the rest.
fn told(answer: &Answer) -> (Vec<String>, Vec<String>) {
    (answer.set.iter().map(|it| it.address.to_string()).collect(), answer.refused.clone())
}

#[test]
fn json_and_xml_say_the_same() {
    let of_xml = Applications::read(XML.as_bytes(), true).unwrap();
    assert_eq!(json(JSON).instances, of_xml.instances);
    assert_eq!(json(JSON).hash_code, of_xml.hash_code);
    let copy = DirectoryCopy::of(of_xml);
    assert_eq!(copy.hash_code(), "DOWN_1_UP_2_");
    assert_eq!(copy.application("users").map(|it| &*it.id).collect::<Vec<_>>(), ["a:users:8080"]);
}

#[test]
fn an_instance_is_a_backend_as_it_says_of_itself() {
    let copy = DirectoryCopy::of(json(JSON));
    let answer = source("users", |_| {}).read(&copy);
    assert_eq!(told(&answer), (vec!["10.0.0.1:8080".to_owned()], vec![]));
    let instance = answer.set.iter().next().unwrap();
    assert_eq!((instance.weight, instance.place.zone.as_deref()), (7, Some("eu-1a")));
    assert_eq!((&*instance.labels["id"], &*instance.labels["host"]), ("a:users:8080", "a.internal"));
    assert_eq!(answer.revision.as_deref(), Some("DOWN_1_UP_2_"));

    let by_name = source("Users", |config| config.host_names = true).read(&copy);
    assert_eq!(told(&by_name).0, ["a.internal:8080"]);
    let (found, refused) = told(&source("orders", |_| {}).read(&copy));
    assert_eq!(found, [""; 0]);
    assert_eq!(refused, ["instance \"c:orders:80\": its port is not enabled; secure_port = true takes the secure one"]);
    let secure = source("orders", |config| config.secure_port = true).read(&copy);
    assert_eq!(told(&secure).0, ["10.0.0.3:8443"]);
    assert_eq!(secure.set.iter().next().unwrap().place.zone.as_deref(), Some("us-east-1c"));
    assert_eq!(told(&source("payments", |_| {}).read(&copy)), (vec![], vec![]));
}

#[test]
fn a_delta_is_taken_in_where_the_hash_code_says_that_nothing_was_missed() {
    let copy = Arc::new(DirectoryCopy::of(json(JSON)));
    let delta = |hash_code: &str, instances: &str| {
        let text = format!(
            "{{\"applications\":{{\"apps__hashcode\":\"{hash_code}\",\"application\":{{\"name\":\"users\",\"instance\":[{instances}]}}}}}}"
        );
        copy.changed(json(&text))
    };
    let added =
        r#"{"instanceId":"d","ipAddr":"10.0.0.4","status":"UP","port":{"$":1,"@enabled":"true"},"actionType":"ADDED"}"#;
    let modified = added.replace("\"d\"", "\"b:users:8080\"").replace("ADDED", "MODIFIED");
    let deleted = added.replace("\"d\"", "\"a:users:8080\"").replace("ADDED", "DELETED");
    let users = |copy: &Arc<DirectoryCopy>| copy.application("users").map(|it| it.id.clone()).collect::<Vec<_>>();
    assert_eq!(users(&delta("DOWN_1_UP_3_", added).unwrap()), ["a:users:8080", "d"]);
    assert_eq!(users(&delta("UP_3_", &modified).unwrap()), ["a:users:8080", "b:users:8080"]);
    assert_eq!(users(&delta("DOWN_1_UP_1_", &deleted).unwrap()), [""; 0]);
    // What is said twice, as deltas of three minutes do, changes nothing.
    assert_eq!(
        users(&delta("UP_4_", &format!("{added},{modified},{added}")).unwrap()),
        ["a:users:8080", "b:users:8080", "d"]
    );
    assert!(Arc::ptr_eq(&delta("DOWN_1_UP_2_", "").unwrap(), &copy));
    for (hash_code, instances) in [("DOWN_1_UP_3_", ""), ("UP_3_", added), ("", added)] {
        assert!(delta(hash_code, instances).is_none(), "{hash_code}");
    }
}

#[test]
fn forms_of_old_servers_and_of_others_are_read() {
    // One member without its list, no ID, a port that is a number, a state of later versions.
    let text = r#"{"applications":{"apps__hashcode":"","application":{"name":"users","instance":
        {"hostName":"h","status":"PAUSED","port":8080,"metadata":{"n":5,"x":null}}}}}"#;
    let [instance] = &json(text).instances[..] else { panic!() };
    assert_eq!((&*instance.id, instance.port, instance.secure_port), ("h", Some(8080), None));
    assert_eq!(instance.state, State::Other("PAUSED".into()));
    assert_eq!(instance.metadata.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(), ["n=5"]);
    // Nothing is registered.
    for text in
        [r#"{"applications":{"versions__delta":"1","apps__hashcode":"","application":[]}}"#, r#"{"applications":{}}"#]
    {
        assert!(json(text).instances.is_empty());
    }
    let nothing = Applications::read(b"<applications><apps__hashcode></apps__hashcode></applications>", true).unwrap();
    assert!(nothing.instances.is_empty() && nothing.hash_code.is_empty());
}

#[test]
fn what_is_not_eurekas_is_an_error() {
    for text in ["", "<html>", "null", "[]", "{}", "{\"applications\":"] {
        assert!(Applications::read(text.as_bytes(), false).is_err(), "{text}");
    }
    let deep = "<a>".repeat(100_000);
    for text in [
        "",
        "{}",
        "<html></html>",
        "<applications>",
        "</applications>",
        "<applications></application>",
        "<a>&evil;</a>",
        &deep,
    ] {
        assert!(Applications::read(text.as_bytes(), true).is_err(), "{text:.40}");
    }
    assert!(Applications::read(b"<applications>\xff</applications>", true).is_err());
}
