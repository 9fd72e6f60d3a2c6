#!/bin/sh
# /cgi-bin/add?N: an order. Answers N once that is committed.
printf 'Content-Type: text/plain\r\n\r\n'
exec mariadb --no-defaults --connect-timeout=2 -h db -u shop -p"$(cat /run/secrets/shop_db_password)" -N shop \
    -e "insert into orders values ($QUERY_STRING, '$(hostname)'); select n from orders where n = $QUERY_STRING" 2>&1
