# The database: made if it is not there, and noted either way in /var/lib/mysql/starts.
set -eu
cd /var/lib/mysql
if [ -e starts ]; then
    echo found >>starts
else
    # Also if making it was broken off.
    rm -rf ./*
    mariadb-install-db --no-defaults --user=root --auth-root-authentication-method=normal --skip-test-db --skip-name-resolve \
        --datadir=/var/lib/mysql
    echo installed >starts
fi
sync starts
cat >/tmp/init.sql <<SQL
create database if not exists shop;
create user if not exists shop@'%' identified by '$(cat /run/secrets/shop_db_password)';
grant all on shop.* to shop@'%';
create table if not exists shop.orders (n int primary key, who varchar(100)) engine=InnoDB;
SQL
exec mariadbd --no-defaults --user=root --datadir=/var/lib/mysql --socket=/tmp/socket --pid-file=/tmp/pid --bind-address=0.0.0.0 \
    --skip-name-resolve --innodb-buffer-pool-size=16M --innodb-log-file-size=16M --init-file=/tmp/init.sql
