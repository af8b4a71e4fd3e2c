package registry;

import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.cloud.netflix.eureka.server.EnableEurekaServer;

/** Eureka, alone: it is no client of another. */
@EnableEurekaServer
@SpringBootApplication
public class EurekaServer {
    public static void main(String[] arguments) {
        System.setProperty("eureka.client.register-with-eureka", "false");
        System.setProperty("eureka.client.fetch-registry", "false");
        SpringApplication.run(EurekaServer.class, arguments);
    }
}
