package users;

import java.util.List;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.cloud.client.discovery.DiscoveryClient;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PathVariable;
import org.springframework.web.bind.annotation.RestController;

/** An ordinary service: which registry it registers in, and how, is a matter of its starter. */
@SpringBootApplication
@RestController
public class Users {
    private final DiscoveryClient discovery;
    private final String identity;

    Users(DiscoveryClient discovery, @Value("${identity}") String identity) {
        this.discovery = discovery;
        this.identity = identity;
    }

    public static void main(String[] arguments) {
        SpringApplication.run(Users.class, arguments);
    }

    @GetMapping("/")
    String root() {
        return identity;
    }

    @GetMapping("/seen/{service}")
    List<String> seen(@PathVariable String service) {
        return discovery.getInstances(service).stream().map(it -> it.getUri().toString()).sorted().toList();
    }
}
